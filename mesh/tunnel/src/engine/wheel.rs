//! A hierarchical timing wheel over ticks: what is due when, of entries that are known by a number.
//!
//! ```text
//! level 0   64 slots of one tick:        the ticks that differ from `elapsed` in the lowest 6 bits
//! level 1   64 slots of 64 ticks:        ... in the next 6 bits, and none above
//! ...
//! level 6   64 slots of 64^6 ticks
//! ```
//!
//! So all entries of a level are due before those of the levels above it, and the first slot in use of
//! the lowest level in use has the next one. When that slot's time comes, its entries move to lower
//! levels, those of level 0 are due. An entry moves at most once a level.
//!
//! The entries are links in one table, by which lists are made; to schedule or to cancel one takes the
//! same time however many there are, and no memory.

const BITS: u32 = 6;
const SLOTS: usize = 1 << BITS;
const LEVELS: usize = 7;
/// The last tick that something can be due at: with ticks of 8 ms that is in 1,100 years.
pub(super) const LAST_TICK: u64 = (1 << (BITS as usize * LEVELS)) - 1;

/// The list of what is due, in order.
const DUE: u32 = (LEVELS * SLOTS) as u32;
/// The list of what was taken from a slot and is to be put into lower ones.
const MOVING: u32 = DUE + 1;
/// The lists have the first places of the table, one for each slot and these two.
const LISTS: u32 = MOVING + 1;
/// Stands for the neighbour of an entry that is in no list.
const NOWHERE: u32 = u32::MAX;

/// An entry, or the head of a list: a ring through all that is in it.
#[derive(Clone, Copy, Debug)]
struct Link {
    /// When the entry is due. Of a list: no entry of it is due before that.
    at: u64,
    before: u32,
    after: u32,
}

/// What [`Wheel::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// This entry is due; it is not scheduled any longer.
    Due(u32),
    /// An entry or a slot was moved; there may be more to do.
    Moved,
    /// Nothing more is due.
    Idle,
}

/// The wheel.
#[derive(Debug)]
pub(super) struct Wheel {
    /// INVARIANT: of an entry in a slot, `at` is later, and the slot is the one of the highest group
    /// of bits in which the two differ.
    elapsed: u64,
    /// One bit a slot: whether something is in it.
    used: [u64; LEVELS],
    links: Vec<Link>,
}

impl Wheel {
    /// Makes one without entries, at tick 0.
    pub(super) fn new() -> Self {
        let list = |place| Link {
            at: 0,
            before: place,
            after: place,
        };
        Self {
            elapsed: 0,
            used: [0; LEVELS],
            links: (0..LISTS).map(list).collect(),
        }
    }

    /// Makes place for the entries below this number. Only here memory is taken.
    pub(super) fn grow_to(&mut self, entries: usize) {
        let none = Link {
            at: 0,
            before: NOWHERE,
            after: NOWHERE,
        };
        let len = LISTS as usize + entries;
        if self.links.len() < len {
            self.links.resize(len, none);
        }
    }

    /// Schedules an entry for a tick, in place of a later one that it may have. A tick that is over
    /// is due at once.
    pub(super) fn schedule(&mut self, entry: u32, at: u64) {
        let place = LISTS + entry;
        let at = at.min(LAST_TICK);
        let link = self.links[place as usize];
        if link.after != NOWHERE {
            if link.at <= at {
                return;
            }
            self.unlink(place);
        }
        self.links[place as usize].at = at;
        self.put(place);
    }

    /// Takes an entry back, if it is scheduled.
    pub(super) fn cancel(&mut self, entry: u32) {
        let place = LISTS + entry;
        if self.links[place as usize].after != NOWHERE {
            self.unlink(place);
        }
    }

    /// Returns the tick from which on [`Wheel::step`] has something to do. It is that of the next
    /// entry, unless an earlier one was taken back or has just come.
    pub(super) fn next(&self) -> Option<u64> {
        let slot = self.first_used();
        let slot = slot.map(|(level, slot)| (level * SLOTS + slot) as u32);
        // What is being moved may be due before or after what was put into slots since.
        let begun = [DUE, MOVING]
            .into_iter()
            .filter(|list| !self.is_empty(*list));
        let lists = slot.into_iter().chain(begun);
        lists.map(|list| self.links[list as usize].at).min()
    }

    /// Does one thing of what there is to do up to the tick `now`, at most a few dozen instructions.
    /// Entries come in the order of their ticks.
    pub(super) fn step(&mut self, now: u64) -> Step {
        if let Some(place) = self.take_first(MOVING) {
            self.put(place);
            return Step::Moved;
        }
        if let Some(place) = self.take_first(DUE) {
            return Step::Due(place - LISTS);
        }
        let now = now.min(LAST_TICK);
        let first = self.first_used().map(|(level, slot)| {
            let below = BITS * level as u32;
            let above = below + BITS;
            let start = self.elapsed >> above << above | (slot as u64) << below;
            (level, slot, start)
        });
        match first {
            Some((level, slot, start)) if start <= now => {
                self.elapsed = start;
                self.used[level] &= !(1 << slot);
                let list = (level * SLOTS + slot) as u32;
                self.move_all(list, if level == 0 { DUE } else { MOVING });
                Step::Moved
            }
            _ => {
                // No slot begins before that, so that all entries stay where they belong.
                self.elapsed = self.elapsed.max(now);
                Step::Idle
            }
        }
    }

    fn first_used(&self) -> Option<(usize, usize)> {
        let level = self.used.iter().position(|slots| *slots != 0)?;
        Some((level, self.used[level].trailing_zeros() as usize))
    }

    /// Puts an entry where its tick belongs.
    fn put(&mut self, place: u32) {
        let at = self.links[place as usize].at;
        if at <= self.elapsed {
            return self.append(DUE, place);
        }
        let level = (at ^ self.elapsed).ilog2() / BITS;
        let slot = at >> (BITS * level) & (SLOTS as u64 - 1);
        self.used[level as usize] |= 1 << slot;
        self.append(level * SLOTS as u32 + slot as u32, place);
    }

    fn append(&mut self, list: u32, place: u32) {
        let at = self.links[place as usize].at;
        let head = self.links[list as usize];
        let earliest = self.earliest(list, at);
        self.links[place as usize] = Link {
            at,
            before: head.before,
            after: list,
        };
        self.links[head.before as usize].after = place;
        self.links[list as usize].before = place;
        self.links[list as usize].at = earliest;
    }

    /// Takes an entry out of the list that it is in.
    fn unlink(&mut self, place: u32) {
        let Link { before, after, .. } = self.links[place as usize];
        self.links[before as usize].after = after;
        self.links[after as usize].before = before;
        self.links[place as usize].before = NOWHERE;
        self.links[place as usize].after = NOWHERE;
        // Only a list that is empty now has itself for a neighbour on both sides.
        if before == after && before < DUE {
            let list = before as usize;
            self.used[list / SLOTS] &= !(1 << (list % SLOTS));
        }
    }

    fn take_first(&mut self, list: u32) -> Option<u32> {
        let first = self.links[list as usize].after;
        (first != list).then(|| {
            self.unlink(first);
            first
        })
    }

    /// Moves all of one list to the end of another, at once.
    fn move_all(&mut self, from: u32, to: u32) {
        let Link { at, before, after } = self.links[from as usize];
        if after == from {
            return;
        }
        let earliest = self.earliest(to, at);
        let last = self.links[to as usize].before;
        self.links[last as usize].after = after;
        self.links[after as usize].before = last;
        self.links[before as usize].after = to;
        self.links[to as usize].before = before;
        self.links[to as usize].at = earliest;
        self.links[from as usize].before = from;
        self.links[from as usize].after = from;
    }

    /// Before which nothing of a list is due once that joins it which is due at `at`.
    fn earliest(&self, list: u32, at: u64) -> u64 {
        match self.is_empty(list) {
            true => at,
            false => self.links[list as usize].at.min(at),
        }
    }

    fn is_empty(&self, list: u32) -> bool {
        self.links[list as usize].after == list
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// What the wheel does, done by looking at everything.
    #[derive(Default)]
    struct Naive {
        at: BTreeMap<u32, u64>,
    }

    impl Naive {
        fn schedule(&mut self, entry: u32, at: u64) {
            let present = self.at.entry(entry).or_insert(at);
            *present = at.min(*present);
        }

        fn next(&self) -> Option<u64> {
            self.at.values().min().copied()
        }
    }

    #[derive(Clone, Debug)]
    enum Input {
        Schedule(u32, u64),
        Cancel(u32),
        /// Time passes, and so many steps are made.
        Pass(u64, usize),
    }

    /// Numbers of all magnitudes up to that many bits.
    fn magnitude(bits: u32) -> impl Strategy<Value = u64> {
        (0..bits, any::<u64>()).prop_map(|(bits, random)| random & ((2 << bits) - 1))
    }

    fn inputs() -> impl Strategy<Value = Vec<Input>> {
        let entry = 0..40u32;
        let input = prop_oneof![
            4 => (entry.clone(), magnitude(40)).prop_map(|(n, wait)| Input::Schedule(n, wait)),
            1 => entry.prop_map(Input::Cancel),
            3 => (magnitude(34), 0..60usize).prop_map(|(time, steps)| Input::Pass(time, steps)),
        ];
        proptest::collection::vec(input, 0..120)
    }

    /// Steps until nothing is due; the entries and the order of their ticks are checked.
    fn run(wheel: &mut Wheel, naive: &mut Naive, now: u64, steps: usize) -> (usize, bool) {
        let (mut fired, mut last) = (0, 0);
        for _ in 0..steps {
            match wheel.step(now) {
                Step::Due(entry) => {
                    let at = naive.at.remove(&entry).expect("it was scheduled");
                    assert!(at <= now, "{entry} came {} ticks early", at - now);
                    assert!(at >= last, "{at} came after {last}");
                    (fired, last) = (fired + 1, at);
                }
                Step::Moved => {}
                Step::Idle => return (fired, true),
            }
        }
        (fired, false)
    }

    proptest! {
        #[test]
        fn everything_comes_in_order_when_it_is_due_and_nothing_else(inputs in inputs(), begin in magnitude(30)) {
            let (mut wheel, mut naive) = (Wheel::new(), Naive::default());
            wheel.grow_to(40);
            let mut now = begin;
            prop_assert_eq!(wheel.step(now), Step::Idle);
            for input in inputs {
                match input {
                    Input::Schedule(entry, wait) => {
                        // In order is what is scheduled for a later moment than the present one.
                        wheel.schedule(entry, now + 1 + wait);
                        naive.schedule(entry, now + 1 + wait);
                    }
                    Input::Cancel(entry) => {
                        wheel.cancel(entry);
                        naive.at.remove(&entry);
                    }
                    Input::Pass(time, steps) => {
                        now += time;
                        if run(&mut wheel, &mut naive, now, steps).1 {
                            prop_assert!(naive.next().is_none_or(|at| at > now));
                            prop_assert!(wheel.next().is_none_or(|at| at > now));
                        }
                    }
                }
                let (told, next) = (wheel.next(), naive.next());
                prop_assert_eq!(told.is_some(), next.is_some());
                prop_assert!(told <= next, "{:?} is told for {:?}", told, next);
            }
            run(&mut wheel, &mut naive, LAST_TICK, usize::MAX);
            prop_assert!(naive.at.is_empty(), "{:?} never came", naive.at);
            prop_assert_eq!(wheel.next(), None);
        }

        #[test]
        fn who_sleeps_until_the_next_is_woken_once_for_each_and_on_time(
            waits in proptest::collection::vec(magnitude(40), 1..40),
            cancelled in 0..10usize,
        ) {
            let (mut wheel, mut naive) = (Wheel::new(), Naive::default());
            wheel.grow_to(waits.len());
            for (entry, wait) in waits.iter().enumerate() {
                wheel.schedule(entry as u32, 1 + wait);
                naive.schedule(entry as u32, 1 + wait);
            }
            let cancelled = cancelled.min(waits.len());
            for entry in 0..cancelled {
                wheel.cancel(entry as u32);
                naive.at.remove(&(entry as u32));
            }
            let mut in_vain = 0;
            while let Some(now) = wheel.next() {
                let due = naive.at.values().filter(|at| **at <= now).count();
                let (fired, idle) = run(&mut wheel, &mut naive, now, usize::MAX);
                prop_assert!(idle && fired == due);
                prop_assert!(naive.next().is_none_or(|at| at > now), "{:?} is late", naive.next());
                in_vain += usize::from(fired == 0);
            }
            prop_assert!(naive.at.is_empty());
            prop_assert!(in_vain <= cancelled, "woken {} times in vain", in_vain);
        }
    }

    #[test]
    fn a_clock_that_jumps_fires_all_in_a_bounded_number_of_steps() {
        let mut wheel = Wheel::new();
        wheel.grow_to(1000);
        for entry in 0..1000 {
            wheel.schedule(entry, 1 + u64::from(entry) * 7919);
        }
        let (mut due, mut steps) = (Vec::new(), 0);
        loop {
            steps += 1;
            match wheel.step(1 << 40) {
                Step::Due(entry) => due.push(entry),
                Step::Moved => {}
                Step::Idle => break,
            }
        }
        assert_eq!(due, (0..1000).collect::<Vec<_>>());
        // Each comes once, and moves at most once a level, alone or with its slot.
        assert!(steps <= 1000 * (1 + 2 * LEVELS), "{steps}");
    }

    #[test]
    fn a_later_deadline_leaves_the_earlier_one_and_an_earlier_one_takes_its_place() {
        let mut wheel = Wheel::new();
        wheel.grow_to(1);
        wheel.schedule(0, 500);
        wheel.schedule(0, 100_000);
        assert_eq!(wheel.next(), Some(500));
        wheel.schedule(0, 20);
        assert_eq!(wheel.next(), Some(20));
        assert_eq!(wheel.step(19), Step::Idle);
        wheel.schedule(0, 7);
        assert_eq!(wheel.next(), Some(7), "what is over is due at once");
        assert_eq!(wheel.step(19), Step::Due(0));
        assert_eq!((wheel.step(1000), wheel.next()), (Step::Idle, None));
    }

    #[test]
    fn scheduling_takes_no_memory() {
        let mut wheel = Wheel::new();
        wheel.grow_to(64);
        let before = wheel.links.as_ptr();
        for round in 0..10_000u64 {
            wheel.schedule((round % 64) as u32, round * 37 % 100_000);
            wheel.step(round * 3);
        }
        assert_eq!(wheel.links.as_ptr(), before);
        assert_eq!(wheel.links.len(), LISTS as usize + 64);
    }
}
