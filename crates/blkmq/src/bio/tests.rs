#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::sync::mpsc;

use proptest::prelude::*;

use super::*;

fn write(sector: u64, segments: &[usize]) -> (Box<Bio>, Vec<u8>) {
    let bytes: Vec<u8> = (0..segments.iter().sum::<usize>()).map(|i| (i % 251) as u8).collect();
    let mut at = 0;
    let data = segments
        .iter()
        .map(|&len| {
            at += len;
            Segment::from_vec(bytes[at - len..at].to_vec())
        })
        .collect();
    (Bio::with_data(Op::Write, Sector(sector), data), bytes)
}

fn bytes(bio: &Bio) -> Vec<u8> {
    bio.segments().flat_map(|s| s.to_vec()).collect()
}

proptest! {
    #[test]
    fn advancing_leaves_exactly_the_rest(
        segments in prop::collection::vec(1usize..2000, 1..6),
        cuts in prop::collection::vec(0u64..1500, 0..8),
    ) {
        let (mut bio, all) = write(7, &segments);
        let mut done = 0;
        for cut in cuts {
            let cut = cut.min(bio.len());
            bio.advance(cut);
            done += cut;
            prop_assert_eq!(bio.len(), all.len() as u64 - done);
            prop_assert_eq!(bytes(&bio), &all[done as usize..]);
        }
    }

    #[test]
    fn a_split_is_the_front_and_the_rest(segments in prop::collection::vec(1usize..2000, 1..6), at in 1u64..4000) {
        let (mut bio, all) = write(0, &segments);
        prop_assume!(at < bio.len());
        let front = bio.split(at);
        prop_assert_eq!(bytes(&front), &all[..at as usize]);
        prop_assert_eq!(bytes(&bio), &all[at as usize..]);
        prop_assert_eq!(bio.sector().0, at / 512);
    }
}

fn told() -> (Arc<dyn EndIo>, mpsc::Receiver<Box<Bio>>) {
    let (sender, receiver) = mpsc::channel();
    (Arc::new(move |bio| sender.send(bio).unwrap()), receiver)
}

#[test]
fn a_chain_ends_once_with_the_first_error_and_the_pieces_in_order() {
    let (end, ended) = told();
    let parent = Bio::new(Op::Read, Sector(0), 1024).on_end(end);
    let mut rest = parent.clone_rest();
    let chain = Chain::new(parent);
    let mut front = rest.split(512);
    chain.add(&mut front);
    chain.add(&mut rest);
    chain.close();
    rest.data.push(Segment::from_vec(vec![2; 512]));
    rest.end(Status::Ok);
    assert!(ended.try_recv().is_err(), "one child is still out");
    front.data.push(Segment::from_vec(vec![1; 512]));
    front.end(Status::Medium);
    let parent = ended.try_recv().unwrap();
    assert_eq!(parent.status(), Status::Medium);
    assert_eq!(parent.data().iter().map(|s| s.to_vec()[0]).collect::<Vec<_>>(), [1, 2]);
    assert!(ended.try_recv().is_err());
}

#[test]
fn a_chain_without_children_ends_when_it_is_closed() {
    let (end, ended) = told();
    Chain::new(Bio::flush().on_end(end)).close();
    assert_eq!(ended.try_recv().unwrap().status(), Status::Ok);
}

#[test]
fn an_ended_bio_is_used_again_with_the_same_owner() {
    let (end, ended) = told();
    Bio::flush().on_end(end).end(Status::Io);
    let mut bio = ended.try_recv().unwrap();
    bio.reset(Op::Discard, Sector(8), 4096);
    bio.end(Status::Ok);
    let bio = ended.try_recv().unwrap();
    assert_eq!((bio.op, bio.status(), bio.len()), (Op::Discard, Status::Ok, 4096));
}

#[test]
fn equal_neighbours_are_one_extent() {
    let mut list = Vec::new();
    for extent in
        [Extent::hole(1), Extent::hole(2), Extent::data(3), Extent::data(0), Extent::data(4)]
    {
        extent.push(&mut list);
    }
    assert_eq!(list, [Extent::hole(3), Extent::data(7)]);
}
