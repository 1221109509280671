//! Files that are not what they are called by: of an earlier life, forged, cut short, another
//! segment's.

use super::*;

#[test]
fn a_file_whose_new_life_was_not_finished_is_blank() {
    // The power went between the writing of a recycled file's header and its renaming; or behind
    // that.
    let world = world_with(12, 12, 5000);
    let mut old = world.disk(NODE).read(&path_of(1)).expect("it is there");
    encode_segment_header(
        Stream::Records,
        SegmentId(90),
        8 * BLOCK,
        Life(90),
        &mut old[..BLOCK_BYTES],
    );
    world.disk(NODE).put(&path_of(0), &old);
    assert_eq!(replayed(&world).expect("no damage"), numbers(1..=12));
    world.disk(NODE).put(&path_of(90), &old);
    assert_eq!(
        replayed(&world).expect("no damage"),
        numbers(1..=12),
        "an earlier life was replayed"
    );
}

#[test]
fn a_value_that_looks_like_a_batch_is_never_taken_for_one() {
    // What a client can foresee: the numbers of the next segment and of the next batch. What lies
    // in the rest of a recycled file is what he wrote into it before.
    let world = world_with(14, 12, 5000);
    let disk = world.disk(NODE);
    let segments = (1..)
        .take_while(|id| disk.read(&path_of(*id)).is_some())
        .count() as u64;
    let used = (1..=segments).filter(|id| !batches(&world, *id).is_empty());
    let last = used.max().expect("there is a log");
    let spans = batches(&world, last);
    let (at, length) = spans[spans.len() - 1];
    let end = at as usize + padded_bytes(length);
    let mut bytes = disk.read(&path_of(last)).expect("it is there");
    assert!(end < bytes.len(), "nothing is left of the segment");
    let own = decode_batch_header(&bytes[at as usize..], None).expect("a batch");
    for life in [0, last, 1, u64::MAX] {
        for (sequence, synced) in [(own.sequence + 1, 0), (own.sequence + 9, own.sequence + 8)] {
            let mut forged = vec![0; BATCH_HEADER_BYTES];
            format::put_record(record(99, 10).bytes(), &mut forged);
            let header = BatchHeader {
                life: Life(life),
                sequence,
                synced,
                durable: Lsn(0),
                first: Lsn(99),
                length: (forged.len() - BATCH_HEADER_BYTES) as u32,
                entries: 1,
            };
            forged.resize(BLOCK_BYTES, 0);
            format::seal_batch(header, std::slice::from_mut(&mut forged));
            bytes[end..end + BLOCK_BYTES].copy_from_slice(&forged);
            disk.put(&path_of(last), &bytes);
            assert_eq!(replayed(&world).expect("no damage"), numbers(1..=12));
        }
    }
}

#[test]
fn a_file_that_was_cut_short_or_holds_another_segment_is_damage() {
    let world = world_with(13, 12, 5000);
    let disk = world.disk(NODE);
    let whole = disk.read(&path_of(1)).expect("it is there");
    // Nothing behind a cut says that there was more.
    for length in [0, BLOCK, 3 * BLOCK, 8 * BLOCK - 1] {
        disk.truncate(&path_of(1), length);
        let error = replayed(&world).expect_err("records are gone");
        assert!(
            error
                .to_string()
                .contains(&SegmentId(1).file_name(Stream::Records)),
            "{error}"
        );
        disk.put(&path_of(1), &whole);
    }
    assert_eq!(replayed(&world).expect("no damage"), numbers(1..=12));
    disk.put(&path_of(90), &whole);
    let error = replayed(&world).expect_err("whose records are these?");
    assert!(
        error
            .to_string()
            .contains(&SegmentId(90).file_name(Stream::Records)),
        "{error}"
    );
}
