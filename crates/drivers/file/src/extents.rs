//! What a file says of its holes, in whole blocks.

use blockyard_blkmq::Extent;
use blockyard_sys::holes::Run;

/// The runs of a range that begins with a block, for `push`. A hole that begins or ends within a block, as one may at
/// a file's end, is smaller by that: a block with any data in it is data. Something is always told.
pub(crate) fn in_blocks(runs: &[Run], block: u64, mut push: impl FnMut(Extent)) {
    let (mut at, mut told) = (0, 0);
    for run in runs {
        let start = at;
        at += run.len;
        let hole = start.next_multiple_of(block)..at - at % block;
        if run.hole && !hole.is_empty() {
            if hole.start > told {
                push(Extent::data(hole.start - told));
            }
            push(Extent::hole(hole.end - hole.start));
            told = hole.end;
        }
    }
    // A list that was cut may end anywhere.
    let end = (at - at % block).max(if told == 0 { block } else { 0 });
    if end > told {
        push(Extent::data(end - told));
    }
}

/// What begins at an offset of a map is data, whatever the file says: reading it fails, and nobody may take it for zeroes.
pub(crate) fn data_from(runs: &mut Vec<Run>, cut: u64) {
    let mut at = 0;
    let Some(first) = runs.iter().position(|run| {
        at += run.len;
        at > cut
    }) else {
        return;
    };
    let told: u64 = runs.iter().map(|run| run.len).sum();
    let before = cut - (at - runs[first].len);
    let hole = runs[first].hole;
    runs.truncate(first);
    if before > 0 {
        runs.push(Run { len: before, hole });
    }
    runs.push(Run { len: told - cut, hole: false });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(runs: &[(u64, bool)]) -> Vec<Extent> {
        let runs: Vec<_> = runs.iter().map(|&(len, hole)| Run { len, hole }).collect();
        let mut all = Vec::new();
        in_blocks(&runs, 512, |extent| extent.push(&mut all));
        all
    }

    #[test]
    fn a_block_with_any_data_is_data() {
        use Extent as E;
        assert_eq!(told(&[(1024, true), (512, false)]), [E::hole(1024), E::data(512)]);
        assert_eq!(told(&[(1000, true), (536, false)]), [E::hole(512), E::data(1024)]);
        assert_eq!(
            told(&[(100, false), (1436, true), (512, false)]),
            [E::data(512), E::hole(1024), E::data(512)]
        );
        assert_eq!(told(&[(100, false), (200, true), (212, false)]), [E::data(512)]);
        assert_eq!(told(&[(512, false), (700, true)]), [E::data(512), E::hole(512)]);
        assert_eq!(told(&[(100, true)]), [E::data(512)], "a list that was cut");
        assert_eq!(told(&[(1024, true), (100, false)]), [E::hole(1024)]);
    }

    #[test]
    fn what_was_cut_off_is_data() {
        let runs = |list: &[(u64, bool)]| -> Vec<Run> {
            list.iter().map(|&(len, hole)| Run { len, hole }).collect()
        };
        let cut = |list, at| {
            let mut found = runs(list);
            data_from(&mut found, at);
            found
        };
        let map = &[(512, false), (1024, true), (512, false)];
        assert_eq!(cut(map, 4096), runs(map));
        assert_eq!(cut(map, 2048), runs(map));
        assert_eq!(cut(map, 1024), runs(&[(512, false), (512, true), (1024, false)]));
        assert_eq!(cut(map, 512), runs(&[(512, false), (1536, false)]));
        assert_eq!(cut(map, 0), runs(&[(2048, false)]));
    }
}
