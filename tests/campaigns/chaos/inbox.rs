//! The receiver of one organisation's webhooks: mostly it answers 200, at times it does not, or not in time. It knows
//! which events it said 200 to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::draws::Draws;
use support::receiver::{Receiver, Step, answer};

/// After so many bad answers to one event the next is good: no delivery runs out of attempts.
const BAD_ANSWERS_MAX: u32 = 3;

struct State {
    draws: Draws,
    events: HashMap<String, Fate>,
}

#[derive(Clone, Copy, Default)]
struct Fate {
    bad: u32,
    good: u32,
}

pub struct Inbox {
    receiver: Receiver,
    state: Arc<Mutex<State>>,
}

impl Inbox {
    pub fn start(draws: Draws) -> Self {
        let all = Arc::new(Mutex::new(State { draws, events: HashMap::new() }));
        let shared = Arc::clone(&all);
        let receiver = Receiver::forgetful(move |seen| {
            let mut known = shared.lock().unwrap();
            let roll = known.draws.below(100);
            let fate = known.events.entry(seen.header("webhook-id").unwrap().to_owned()).or_default();
            if roll >= 6 || fate.bad == BAD_ANSWERS_MAX {
                fate.good += 1;
                return answer(200, "");
            }
            fate.bad += 1;
            match roll {
                0 => vec![Step::Hold],
                1 => vec![Step::Reset],
                2 => vec![Step::Pause(Duration::from_millis(300)), Step::Close],
                _ => answer(503, "busy"),
            }
        });
        Self { receiver, state: all }
    }

    pub fn url(&self) -> String {
        self.receiver.url("/hooks")
    }

    /// Whether it has said 200 to this event.
    pub fn accepted(&self, event: &str) -> bool {
        self.state.lock().unwrap().events.get(event).is_some_and(|fate| fate.good > 0)
    }

    /// How many different events came, how many requests were answered with 200, and how many were not.
    pub fn counts(&self) -> (usize, u64, u64) {
        let state = self.state.lock().unwrap();
        let sum = |of: fn(&Fate) -> u32| state.events.values().map(|fate| u64::from(of(fate))).sum();
        (state.events.len(), sum(|fate| fate.good), sum(|fate| fate.bad))
    }
}
