//! Names of images and snapshots.

/// An image, or a snapshot of one, in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageSpec {
    /// Empty for the default one.
    pub(crate) namespace: String,
    /// The image.
    pub(crate) image: String,
    /// The snapshot, if it is one.
    pub(crate) snapshot: Option<String>,
}

impl ImageSpec {
    /// `IMAGE` or `IMAGE@SNAPSHOT`, in a namespace.
    ///
    /// # Errors
    /// A sentence for people.
    pub(crate) fn parse(namespace: &str, text: &str) -> Result<Self, String> {
        let (image, snapshot) = match text.split_once('@') {
            Some((image, snapshot)) => (image, Some(snapshot)),
            None => (text, None),
        };
        if image.is_empty() || image.contains('/') {
            return Err(format!("invalid image {text:?}; write IMAGE or IMAGE@SNAPSHOT"));
        }
        if let Some(snapshot) = snapshot
            && (snapshot.is_empty() || snapshot.contains(['/', '@']))
        {
            return Err(format!("invalid snapshot name {snapshot:?}; / and @ are not allowed"));
        }
        let snapshot = snapshot.map(str::to_owned);
        Ok(Self { namespace: namespace.into(), image: image.into(), snapshot })
    }
}

impl std::fmt::Display for ImageSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.image)?;
        match &self.snapshot {
            Some(snapshot) => write!(f, "@{snapshot}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_snapshots_have_names() {
        let spec = ImageSpec::parse("ns", "a b@s").unwrap();
        assert_eq!((spec.image.as_str(), spec.snapshot.as_deref()), ("a b", Some("s")));
        assert_eq!(spec.to_string(), "ns/a b@s");
        assert_eq!(ImageSpec::parse("", "a").unwrap().to_string(), "a");
        for wrong in ["", "@s", "a@", "a@b@c", "a@b/c", "a/b"] {
            assert!(ImageSpec::parse("", wrong).is_err(), "{wrong}");
        }
    }
}
