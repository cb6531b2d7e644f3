//! How long a value is fresh, and what it may still be good for afterwards.
//!
//! A value is *fresh* for its time to live. Beyond that it may be kept for a *grace*: to be served while
//! a newer one is loaded in the background, or because the loader fails. So an entry's deadline, in
//! every tier, is the end of its time to live and the grace; when it stops being fresh follows from the
//! two, and nothing more has to be kept.
//!
//! Shortly before that, a value may be loaded anew although it is fresh: when less than a fixed time is
//! left, or by chance, with a probability that grows towards the end and with the time that a load
//! takes. The latter is XFetch (Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache
//! Stampede Prevention", PVLDB 2015): of many machines that hold the value, one or two refresh it early,
//! and the others never find it missing.

use crate::clock::{Millis, NEVER};

/// The windows of a cache, in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Freshness {
    pub(crate) while_revalidate: Millis,
    pub(crate) if_error: Millis,
    pub(crate) ahead: Millis,
    /// XFetch's beta; 0 for none.
    pub(crate) early: f64,
}

/// What an entry has in place of its cache's windows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Windows {
    /// In milliseconds, like the next two.
    pub(crate) while_revalidate: Option<u32>,
    pub(crate) if_error: Option<u32>,
    pub(crate) ahead: Option<u32>,
    /// XFetch's beta.
    pub(crate) early: Option<f32>,
}

/// What decides how long an entry is good for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    pub(crate) deadline: Millis,
    /// Whether it was declared stale before its time.
    pub(crate) stale: bool,
    pub(crate) windows: Windows,
}

impl Life {
    /// That of an entry with a deadline and nothing else.
    pub(crate) fn until(deadline: Millis) -> Self {
        Self { deadline, stale: false, windows: Windows::default() }
    }
}

/// What a value is good for at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Fresh,
    /// Fresh, and about time to load it anew.
    Due,
    /// Good enough while a newer one is loaded.
    Stale,
    /// Good enough only if no newer one can be had.
    Old,
}

impl Freshness {
    /// The windows of an entry that has some of its own.
    pub(crate) fn of(&self, own: Windows) -> Self {
        let millis = |own: Option<u32>, cache| own.map_or(cache, Millis::from);
        Self {
            while_revalidate: millis(own.while_revalidate, self.while_revalidate),
            if_error: millis(own.if_error, self.if_error),
            ahead: millis(own.ahead, self.ahead),
            early: own.early.map_or(self.early, f64::from),
        }
    }

    /// How long a value is kept beyond its time to live.
    pub(crate) fn grace(&self) -> Millis {
        self.while_revalidate.max(self.if_error)
    }

    fn fresh_until(&self, deadline: Millis) -> Millis {
        if deadline == NEVER { NEVER } else { deadline.saturating_sub(self.grace()) }
    }

    pub(crate) fn is_fresh(&self, life: &Life, now: Millis) -> bool {
        !life.stale && now < self.of(life.windows).fresh_until(life.deadline)
    }

    /// Whether a value may be served while a newer one is loaded.
    pub(crate) fn serves_meanwhile(&self, life: &Life, now: Millis) -> bool {
        let own = self.of(life.windows);
        let until = own.fresh_until(life.deadline).saturating_add(own.while_revalidate);
        now < until && (!life.stale || own.while_revalidate > 0)
    }

    /// Whether a value may be served because its loader has failed.
    pub(crate) fn serves_on_error(&self, life: &Life, now: Millis) -> bool {
        let own = self.of(life.windows);
        let until = own.fresh_until(life.deadline).saturating_add(own.if_error);
        now < until && (!life.stale || own.if_error > 0)
    }

    /// Judges a value. `chance` is drawn evenly from 0 to 1, 0 excluded; `load_millis` is what a load
    /// takes. One that was declared stale is as good as one whose time to live has just ended.
    pub(crate) fn judge(
        &self,
        life: &Life,
        now: Millis,
        load_millis: f64,
        chance: impl FnOnce() -> f64,
    ) -> State {
        let own = self.of(life.windows);
        let fresh_until = own.fresh_until(life.deadline);
        if life.stale && now < fresh_until {
            return if own.while_revalidate > 0 { State::Stale } else { State::Old };
        }
        if fresh_until == NEVER {
            return State::Fresh;
        }
        if now >= fresh_until {
            let servable = now < fresh_until.saturating_add(own.while_revalidate);
            return if servable { State::Stale } else { State::Old };
        }
        let left = fresh_until - now;
        if left <= own.ahead {
            return State::Due;
        }
        if own.early > 0.0 && left as f64 <= own.early * load_millis * -chance().ln() {
            return State::Due;
        }
        State::Fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESHNESS: Freshness =
        Freshness { while_revalidate: 30, if_error: 100, ahead: 10, early: 0.0 };

    fn at(now: Millis) -> State {
        // Fresh until 1,000.
        FRESHNESS.judge(&Life::until(1_100), now, 0.0, || unreachable!("nothing is left to chance"))
    }

    #[test]
    fn a_value_goes_from_fresh_to_due_to_stale_to_old() {
        let states = [0, 989, 990, 999, 1_000, 1_029, 1_030, 1_099].map(at);
        use State::{Due, Fresh, Old, Stale};
        assert_eq!(states, [Fresh, Fresh, Due, Due, Stale, Stale, Old, Old]);
        let life = Life::until(1_100);
        assert!(FRESHNESS.is_fresh(&life, 999) && !FRESHNESS.is_fresh(&life, 1_000));
        assert!(FRESHNESS.serves_on_error(&life, 1_099));
        assert!(!FRESHNESS.serves_on_error(&life, 1_100));
        assert!(FRESHNESS.serves_meanwhile(&life, 1_029));
        assert!(!FRESHNESS.serves_meanwhile(&life, 1_030));
    }

    #[test]
    fn what_was_declared_stale_is_good_for_what_the_windows_say() {
        let life = Life { stale: true, ..Life::until(NEVER) };
        let chance = || unreachable!("nothing is left to chance");
        assert_eq!(FRESHNESS.judge(&life, 5, 0.0, chance), State::Stale);
        assert!(!FRESHNESS.is_fresh(&life, 5) && FRESHNESS.serves_on_error(&life, 5));
        let none = Freshness::default();
        assert_eq!(none.judge(&life, 5, 0.0, chance), State::Old);
        assert!(!none.serves_on_error(&life, 5) && !none.serves_meanwhile(&life, 5));
        assert!(FRESHNESS.serves_meanwhile(&life, 5));
    }

    #[test]
    fn an_entry_has_windows_of_its_own() {
        let windows =
            Windows { while_revalidate: Some(0), if_error: Some(50), ..Windows::default() };
        let life = Life { windows, ..Life::until(1_050) };
        let judged = |now| FRESHNESS.judge(&life, now, 0.0, || unreachable!("no chance"));
        assert_eq!([989, 990, 1_000].map(judged), [State::Fresh, State::Due, State::Old]);
        assert!(FRESHNESS.serves_on_error(&life, 1_049));
    }

    #[test]
    fn what_lives_for_ever_is_always_fresh() {
        let life = Life::until(NEVER);
        assert_eq!(FRESHNESS.judge(&life, NEVER - 1, 1e9, || 1e-9), State::Fresh);
        assert!(FRESHNESS.is_fresh(&life, NEVER - 1));
    }

    #[test]
    fn without_windows_a_value_is_fresh_until_its_deadline() {
        let none = Freshness::default();
        let life = Life::until(50);
        assert_eq!(none.judge(&life, 49, 1e9, || 1e-9), State::Fresh);
        assert_eq!((none.grace(), none.is_fresh(&life, 50)), (0, false));
        assert!(!none.serves_on_error(&life, 50));
    }

    #[test]
    fn early_refreshes_become_likelier_towards_the_end_and_with_slower_loads() {
        let early = Freshness { early: 1.0, ..Freshness::default() };
        let mut rng = fastrand::Rng::with_seed(1);
        let mut due = |left: Millis, load_millis: f64| {
            let draws = 10_000;
            let one = |rng: &mut fastrand::Rng| {
                let life = Life::until(1_000);
                early.judge(&life, 1_000 - left, load_millis, || 1.0 - rng.f64()) == State::Due
            };
            (0..draws).filter(|_| one(&mut rng)).count() as f64 / f64::from(draws)
        };
        // P(load * -ln u >= left) = e^(-left / load).
        for (left, load_millis) in [(10, 10.0), (100, 50.0), (300, 100.0), (500, 1.0)] {
            let expected = (-(left as f64) / load_millis).exp();
            assert!((due(left, load_millis) - expected).abs() < 0.02, "{left} {load_millis}");
        }
    }
}
