//! Interleavings of an invalidation with those who look and those who fill, under loom.

use loom::sync::Arc as LoomArc;
use loom::thread;

use super::*;

const TAG: u64 = 2;

fn entry(table: &TagTable) -> Arc<Attributes> {
    Attributes::new(table, [TAG], table.stamp(), Windows::default()).expect("it has a tag")
}

#[test]
fn loom_a_look_that_races_with_an_invalidation_does_not_keep_the_entry_good() {
    loom::model(|| {
        let table = LoomArc::new(TagTable::default());
        let entry = entry(&table);
        // Something else was invalidated, so that looks have to look closely.
        table.invalidate(&[4]);
        let (theirs, looked_at) = (LoomArc::clone(&table), Arc::clone(&entry));
        let looker = thread::spawn(move || {
            let (standing, now) = looked_at.standing(&theirs);
            // A look that knows the time of the invalidation knows of the invalidation.
            assert!(standing == Standing::Invalid || now < 3);
        });
        let time = table.invalidate(&[TAG]);
        assert_eq!(entry.standing(&table).0, Standing::Invalid);
        looker.join().expect("the looker does not panic");
        assert_eq!((entry.standing(&table).0, time), (Standing::Invalid, 3));
    });
}

#[test]
fn loom_a_value_whose_making_began_before_is_refused_whenever_it_comes() {
    loom::model(|| {
        let table = LoomArc::new(TagTable::default());
        let theirs = LoomArc::clone(&table);
        let stamp = table.stamp();
        let filler = thread::spawn(move || {
            Attributes::new(&theirs, [TAG], stamp, Windows::default()).expect("it has a tag")
        });
        table.invalidate(&[TAG]);
        let entry = filler.join().expect("the filler does not panic");
        assert_eq!(entry.standing(&table).0, Standing::Invalid);
        assert_eq!(self::entry(&table).standing(&table).0, Standing::Good);
    });
}

#[test]
fn loom_of_two_invalidations_none_is_lost() {
    loom::model(|| {
        let table = LoomArc::new(TagTable::default());
        let (one, other) = (entry(&table), entry(&table));
        let theirs = LoomArc::clone(&table);
        let invalidator = thread::spawn(move || theirs.invalidate(&[TAG | SOFT]));
        table.invalidate(&[TAG]);
        assert_eq!(one.standing(&table).0, Standing::Invalid);
        invalidator.join().expect("it does not panic");
        assert_eq!(other.standing(&table).0, Standing::Invalid);
        assert_eq!(table.now(), 3);
    });
}
