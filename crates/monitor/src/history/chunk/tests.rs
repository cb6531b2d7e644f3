//! Chunks say what was put in, and bytes that nobody wrote give an error.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::histogram::Part;
use crate::history::block::Block;

/// A row of the block: how long after the one before, and what the series has in it.
type Row = (u16, Option<(f64, Vec<Part>)>);

fn parts() -> impl Strategy<Value = Vec<Part>> {
    vec((0_u16..1_920, 1_u64..100_000, 0_u64..16), 0..6).prop_map(|parts| {
        let part = |(index, count, place)| Part { index, count, position: count * place };
        parts.into_iter().map(part).collect()
    })
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let distance = prop_oneof![8 => Just(1_000_u16), 1 => 1_u16..5_000];
    let value =
        prop_oneof![Just(7.0), -1e3..1e3, any::<f64>().prop_filter("no NaN", |v| !v.is_nan())];
    vec((distance, proptest::option::weighted(0.9, (value, parts()))), 1..40)
}

fn block(shape: Shape, rows: &[Row]) -> Block {
    let mut block = Block::new(0);
    let mut at = 1_700_000_000_000;
    for (distance, row) in rows {
        at += i64::from(*distance);
        block.begin_row(at);
        if let Some((value, parts)) = row {
            let numbers: Vec<f64> = (0..shape.width()).map(|k| value + k as f64).collect();
            block.push(0, shape, &numbers, parts);
        }
    }
    block
}

/// What a view has: times, numbers and parts of the rows that are there.
fn content(view: &View<'_>) -> Vec<(i64, Vec<u64>, Vec<Part>)> {
    let column = view.column;
    let rows = (0..column.rows()).filter(|row| column.has(*row));
    let content = rows.map(|row| {
        let numbers = &column.values[..column.shape.width()];
        let numbers = numbers.iter().map(|values| values[row].to_bits()).collect();
        let parts = column.runs.iter().flat_map(|runs| runs.row(row)).collect();
        (view.times[row], numbers, parts)
    });
    content.collect()
}

const SHAPES: [Shape; 4] = [Shape::Samples, Shape::Gauges, Shape::Counters, Shape::Distributions];

proptest! {
    #[test]
    fn what_was_written_is_read(rows in rows(), shape in 0_usize..4) {
        let shape = SHAPES[shape];
        let block = block(shape, &rows);
        let Some(column) = block.column(0) else { return Ok(()) };
        let view = View::new(&block.times, column);
        let bytes = encode(&view, 1_000).expect("there is a row");
        let read = decode(&bytes, Wanted::ALL).expect("it was just written");
        prop_assert_eq!(content(&read.view()), content(&view));
        if shape == Shape::Samples {
            prop_assert_eq!(read.column.falls, column.falls);
        }
    }

    #[test]
    fn bytes_with_another_checksum_are_refused(rows in rows(), at in any::<usize>(), bit in 0_u8..8) {
        let block = block(Shape::Samples, &rows);
        let Some(column) = block.column(0) else { return Ok(()) };
        let mut bytes = encode(&View::new(&block.times, column), 1_000).expect("there is a row");
        let at = at % bytes.len();
        bytes[at] ^= 1_u8 << bit;
        let refused = matches!(decode(&bytes, Wanted::ALL), Err(ChunkError::Checksum { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn damage_that_the_checksum_hides_never_panics(
        rows in rows(),
        shape in 0_usize..4,
        damages in vec((any::<usize>(), any::<u8>()), 1..6),
        keep in any::<usize>(),
    ) {
        let block = block(SHAPES[shape], &rows);
        let Some(column) = block.column(0) else { return Ok(()) };
        let bytes = encode(&View::new(&block.times, column), 1_000).expect("there is a row");
        let mut body = bytes[..bytes.len() - 4].to_vec();
        for (at, byte) in damages {
            let at = at % body.len();
            body[at] = byte;
        }
        body.truncate(1 + keep % (body.len() * 2));
        // Whatever comes, it is a chunk or an error.
        if let Ok(piece) = decode_body(&body, Wanted::ALL) {
            prop_assert!(piece.times.is_sorted());
            prop_assert_eq!(piece.times.len(), piece.column.rows());
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        let _ = try_decode(&bytes);
        let known = [&[1, 1, 1, 0][..], &bytes].concat();
        let _ = try_decode(&known);
    }
}

#[test]
fn a_gap_costs_a_bitmap_and_an_odd_time_a_list() {
    let row = |distance| (distance, Some((1.0, Vec::new())));
    let size = |rows: &[Row]| {
        let block = block(Shape::Samples, rows);
        let column = block.column(0).expect("it has rows");
        encode(&View::new(&block.times, column), 1_000).expect("it has rows").len()
    };
    let whole = size(&vec![row(1_000); 600]);
    assert!(whole < 40, "constant and on time: {whole} bytes");
    let mut rows = vec![row(1_000); 600];
    rows[300] = row(3_000);
    assert_eq!(size(&rows), whole + 602_usize.div_ceil(8));
    rows[400] = row(1_001);
    assert!(size(&rows) < whole + 200, "{} bytes", size(&rows));
}

#[test]
fn what_is_not_known_is_named() {
    let block = block(Shape::Samples, &[(1, Some((1.0, Vec::new())))]);
    let column = block.column(0).expect("it has a row");
    let bytes = encode(&View::new(&block.times, column), 1_000).expect("it has a row");
    let problem = |at: usize, byte: u8| {
        let mut body = bytes[..bytes.len() - 4].to_vec();
        body[at] = byte;
        decode_body(&body, Wanted::ALL).expect_err("it is damaged").to_string()
    };
    assert_eq!(problem(0, 9), "version 9; this program reads version 1");
    assert_eq!(problem(1, 9), "codec 9; this program knows 1");
    assert_eq!(problem(2, 9), "its shape is none that there is");
    assert_eq!(problem(3, 0x80), "it has flags that this program does not know");
    assert_eq!(decode(&[1, 2], Wanted::ALL).expect_err("short"), ChunkError::Truncated);
}
