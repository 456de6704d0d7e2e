//! tree: from the root, which is the middle node, down to a leaf, which is odd, half of the way to the left or right
//! (`bucket_tree_choose`).
//!
//! Each step would wait for the hash of the one before. Instead all nodes are hashed that the next steps may come to.

use crate::hash::{hash4_each, hash32_4};

/// The most nodes of a tree bucket; more do not fit into the byte that counts them.
pub(crate) const MAX_NODES: usize = 128;

/// How many inner nodes, which are the even ones, are hashed at once: those of the last four steps.
const BLOCK: usize = 16;

/// The index of the item that is chosen from the bucket with a number, for an input and an attempt. `weights` are
/// those below each node.
#[inline(always)]
pub(crate) fn choose(weights: &[u32], bucket: u32, x: u32, r: u32) -> usize {
    let weight = |node: usize| u64::from(weights.get(node).copied().unwrap_or(0));
    let next = |node: usize, hash: u32| {
        let half = 1 << (node.trailing_zeros() - 1);
        let point = (u64::from(hash) * weight(node)) >> 32;
        if point < weight(node - half) { node - half } else { node + half }
    };
    let mut node = weights.len() >> 1;
    while node > BLOCK && node.trailing_zeros() > BLOCK.trailing_zeros() {
        // At most MAX_NODES.
        #[allow(clippy::cast_possible_truncation)]
        let hash = hash32_4(x, node as u32, r, bucket);
        node = next(node, hash);
    }
    if node & 1 != 0 || node == 0 {
        return node >> 1;
    }
    // The first node of the block, all of whose nodes are below the one that was reached, or beyond the tree.
    let first = node & !(2 * BLOCK - 1);
    let mut nodes = [0; BLOCK];
    // At most MAX_NODES.
    #[allow(clippy::cast_possible_truncation)]
    nodes.iter_mut().zip((first as u32..).step_by(2)).for_each(|(slot, node)| *slot = node);
    let mut hashes = [0; BLOCK];
    hash4_each(x, &nodes, r, bucket, &mut hashes);
    while node & 1 == 0 {
        node = next(node, hashes[(node - first) >> 1 & (BLOCK - 1)]);
    }
    node >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step at a time.
    fn walk(weights: &[u32], bucket: u32, x: u32, r: u32) -> usize {
        let mut node = weights.len() / 2;
        while node & 1 == 0 && node != 0 {
            let half = 1 << (node.trailing_zeros() - 1);
            let hash = hash32_4(x, u32::try_from(node).unwrap_or(0), r, bucket);
            let point = (u64::from(hash) * u64::from(weights[node])) >> 32;
            node = if point < u64::from(weights[node - half]) { node - half } else { node + half };
        }
        node / 2
    }

    #[test]
    fn blocks_of_nodes_lead_where_single_steps_do() {
        for nodes in [1, 2, 4, 8, 16, 32, 64, 128_u32] {
            let random = |node: u32| node.wrapping_mul(2_654_435_761) >> 12;
            for weight in [random as fn(u32) -> u32, |_| 0, |node| node % 3, |_| u32::MAX] {
                let weights: Vec<u32> = (0..nodes).map(weight).collect();
                for x in 0..300 {
                    let expected = walk(&weights, 77, x, 3);
                    assert_eq!(choose(&weights, 77, x, 3), expected, "{nodes} nodes, input {x}");
                }
            }
        }
        assert_eq!(choose(&[], 77, 0, 3), 0);
    }
}
