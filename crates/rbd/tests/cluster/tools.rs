//! What Ceph's tools say of images.

use crate::POOL;
use blockyard_lab::ceph::Cluster as Lab;
use serde_json::Value;

/// Runs `rbd`: what it prints.
pub(crate) fn rbd(lab: &Lab, arguments: &[&str]) -> String {
    lab.run(lab.tool("rbd").args(["-p", POOL]).args(arguments)).unwrap()
}

pub(crate) fn json(lab: &Lab, arguments: &[&str]) -> Value {
    let text = rbd(lab, &[arguments, &["--format", "json"]].concat());
    serde_json::from_str(&text).unwrap()
}

/// The bytes of an image, or a snapshot of one.
pub(crate) fn export(lab: &Lab, image: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let arguments = ["export", "--no-progress", "--rbd-concurrent-management-ops", "20", image];
    rbd(lab, &[&arguments[..], &[path.to_str().unwrap()]].concat());
    std::fs::read(path).unwrap()
}

/// Makes an image of bytes.
pub(crate) fn import(lab: &Lab, bytes: &[u8], image: &str, options: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, bytes).unwrap();
    let arguments = ["import", "--no-progress", path.to_str().unwrap(), image];
    rbd(lab, &[&arguments[..], options].concat());
}

/// The ranges that have changed since a snapshot, and whether something is there.
pub(crate) fn diff(
    lab: &Lab,
    image: &str,
    from: Option<&str>,
    whole: bool,
) -> Vec<(u64, u64, bool)> {
    let mut arguments = vec!["diff", image];
    if let Some(from) = from {
        arguments.extend(["--from-snap", from]);
    }
    if whole {
        arguments.push("--whole-object");
    }
    let ranges = json(lab, &arguments);
    let range = |range: &Value| {
        let number = |key: &str| range[key].as_u64().unwrap();
        (number("offset"), number("length"), range["exists"] == "true")
    };
    ranges.as_array().unwrap().iter().map(range).collect()
}

/// The object map is what objects are.
pub(crate) fn check_map(lab: &Lab, image: &str) {
    let mut check = lab.tool("rbd");
    let said = check.args(["-p", POOL, "object-map", "check", "--no-progress", image]).output();
    let said = String::from_utf8_lossy(&said.unwrap().stderr).into_owned();
    let info = json(lab, &["info", image]);
    assert_eq!(info["flags"].as_array().map(Vec::len), Some(0), "{info}: {said}");
}
