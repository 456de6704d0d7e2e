//! Zeroes in data.

use blockyard_buf::{Segment, Segments};

/// Zeroes within data are looked for in blocks of so many bytes.
const ZERO_BLOCK: usize = 32 << 10;

/// Runs of blocks that are all zeroes, or not.
pub(super) fn by_zeroes(data: &[Segment]) -> Vec<(Segments, bool)> {
    let mut runs: Vec<(Segments, bool)> = Vec::new();
    let mut buffer = vec![0; ZERO_BLOCK];
    // Bytes of the block so far, and whether all of them are zeroes.
    let (mut filled, mut zero) = (0, true);
    let mut block = Segments::new();
    let mut close = |block: &mut Segments, zero: bool| {
        let block = std::mem::take(block);
        match runs.last_mut() {
            Some((list, last)) if *last == zero => list.extend(block),
            _ if block.is_empty() => {}
            _ => runs.push((block, zero)),
        }
    };
    for segment in data {
        let mut at = 0;
        while at < segment.len() {
            let part = segment.slice(at, (segment.len() - at).min(ZERO_BLOCK - filled));
            if zero && !part.is_zero_run() {
                let bytes = &mut buffer[..part.len()];
                part.copy_to(bytes);
                zero = is_zero(bytes);
            }
            at += part.len();
            filled += part.len();
            block.push(part);
            if filled == ZERO_BLOCK {
                close(&mut block, zero);
                (filled, zero) = (0, true);
            }
        }
    }
    close(&mut block, zero);
    runs
}

/// Whether all bytes are zeroes, word by word.
pub(in crate::tools) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_in_data_are_found_block_by_block() {
        let mut bytes = vec![0; 4 * ZERO_BLOCK + 512];
        bytes[0] = 1;
        bytes[3 * ZERO_BLOCK - 1] = 1;
        // In pieces that are no blocks.
        let data = [
            Segment::from_vec(bytes[..50_000].to_vec()),
            Segment::from_vec(bytes[50_000..].to_vec()),
        ];
        let runs: Vec<_> = by_zeroes(&data)
            .iter()
            .map(|(list, zero)| (blockyard_buf::total_len(list), *zero))
            .collect();
        let expected = [
            (ZERO_BLOCK, false),
            (ZERO_BLOCK, true),
            (ZERO_BLOCK, false),
            (ZERO_BLOCK + 512, true),
        ];
        assert_eq!(runs, expected);
        assert!(by_zeroes(&[]).is_empty());
    }
}
