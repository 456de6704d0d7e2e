//! Namespaces.

use blockyard_rbd::image::namespace;
use blockyard_rbd::store::ObjectStore;
use serde::Serialize;

use super::cannot;
use super::place::Context;
use crate::cli::NamespaceCommand;
use crate::error::Result;
use crate::images::Store;
use crate::text::term;

#[derive(Serialize)]
struct Listed {
    name: String,
}

pub(super) async fn run(context: &Context<'_>, command: &NamespaceCommand) -> Result<()> {
    match command {
        NamespaceCommand::Create { name } => {
            let pool = pool(context.store(None, true)?).await?;
            namespace::create(&pool, name).await.map_err(cannot("create the namespace", name))
        }
        NamespaceCommand::Ls { store } => {
            let pool = pool(context.store(store.as_deref(), false)?).await?;
            let names = namespace::list(&pool).await.map_err(cannot("list", &"namespaces"))?;
            if context.json {
                let all: Vec<_> = names.into_iter().map(|name| Listed { name }).collect();
                return term::say_json(&all);
            }
            if names.is_empty() {
                return Ok(());
            }
            let mut table = term::table(&["NAME"]);
            for name in names {
                table.add_row([name]);
            }
            term::say(table.trim_fmt())
        }
        NamespaceCommand::Rm { name } => {
            let pool = pool(context.store(None, false)?).await?;
            let removed = namespace::remove(&pool, name).await;
            removed.map_err(|err| {
                cannot("remove the namespace", name)(err)
                    .help("the namespace must exist and be empty; list them: blockyard image namespace ls")
            })
        }
    }
}

/// The default namespace, which knows of the others.
async fn pool(store: Store) -> Result<Store> {
    store.in_pool(store.pool(), "").await.map_err(cannot("open", &"the store"))
}
