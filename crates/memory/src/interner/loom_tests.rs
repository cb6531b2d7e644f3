//! Every interleaving of the interner's hand-overs between threads, under loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p memory --release --lib loom`
//!
//! A shard is a mutex here instead of a read-write lock, with one place instead of a table: what is
//! checked is who may remove a string while a front cache holds some of its references.

use loom::sync::Arc;
use loom::thread;

use super::SymbolTable;
use crate::raw::{Stock, Text, TryCell};
use crate::sync::Mutex;

struct Model {
    shard: Mutex<Option<Text>>,
    slot: TryCell<Option<Stock>>,
}

impl Model {
    fn new() -> Arc<Self> {
        let text = Text::new("text", 1, 1);
        let slot = TryCell::new(Some(Stock::new(text.clone())));
        Arc::new(Self { shard: Mutex::new(Some(text)), slot })
    }

    fn intern(&self) -> Text {
        let from_slot = self.slot.try_with(|slot| slot.as_mut().map(|stock| stock.take(2)));
        if let Some(text) = from_slot.flatten() {
            return text;
        }
        self.shard.lock().get_or_insert_with(|| Text::new("text", 1, 1)).clone()
    }

    fn put(&self, text: Text) {
        let mut text = Some(text);
        self.slot.try_with(|slot| match slot {
            Some(stock) => text = text.take().and_then(|text| stock.put(text, 4).err()),
            None => *slot = text.take().map(Stock::new),
        });
    }

    /// Takes the stock back and removes the string if nobody has it; whether the table is empty.
    fn reclaim(&self) -> bool {
        self.slot.try_with(|slot| *slot = None);
        let mut shard = self.shard.lock();
        if shard.as_ref().is_some_and(|text| text.references() == 1) {
            *shard = None;
        }
        shard.is_none()
    }
}

#[test]
fn loom_a_sweep_takes_no_string_in_use() {
    loom::model(|| {
        let model = Model::new();
        let user = Arc::clone(&model);
        let user = thread::spawn(move || {
            let one = user.intern();
            assert_eq!(one.as_str(), "text");
            // While it is held, the table has the same copy.
            assert!(user.shard.lock().as_ref().is_some_and(|kept| kept.is(&one)));
            user.put(one);
        });
        model.reclaim();
        user.join().expect("does not panic");
        assert!(model.reclaim(), "nobody has it any more");
    });
}

#[test]
fn loom_a_handle_goes_back_from_another_thread() {
    loom::model(|| {
        let model = Model::new();
        let one = model.intern();
        let other = Arc::clone(&model);
        let other = thread::spawn(move || other.put(one));
        let two = model.intern();
        drop(two);
        other.join().expect("does not panic");
        assert!(model.reclaim());
    });
}

#[test]
fn loom_symbols_agree() {
    loom::model(|| {
        let table = SymbolTable::new(10, 100).expect("valid caps");
        table.intern("a").expect("room");
        let other = table.clone();
        // The second and the third grow the index of two words.
        let other = thread::spawn(move || {
            (other.intern("b").expect("room"), other.get("a").map(|it| it.index()))
        });
        let c = table.intern("c").expect("room");
        assert_eq!(table.get("a").map(|it| it.index()), Some(0));
        if let Some(b) = table.get("b") {
            assert_eq!(table.resolve(b), Some("b"));
        }
        let (b, a) = other.join().expect("does not panic");
        assert_eq!(a, Some(0));
        assert_eq!((table.get("b"), table.get("c")), (Some(b), Some(c)));
        assert_ne!(b, c);
    });
}
