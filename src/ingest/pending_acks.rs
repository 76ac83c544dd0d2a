//! 202s that are in a connection's output and may not leave it yet: their events are not durable.

use std::rc::Rc;
use std::time::Instant;

use millrace_base::event::EventId;
use millrace_journal::{AckToken, AppendError};

use super::Charge;

/// An event that was taken, and when its request began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    pub id: EventId,
    pub started: Instant,
}

/// See the module.
#[derive(Default)]
pub(super) struct Promises {
    ticket: Rc<AckToken>,
    /// Where in the output each of the answers begins.
    begins: Vec<usize>,
    /// What each took of its organisation's minute; ends early where the last took nothing.
    charges: Vec<Option<Charge>>,
    /// When the request of the first began.
    since: Option<Instant>,
}

/// What became of all of them.
pub(super) struct Settled {
    /// How many may leave, from the first on.
    pub kept: u32,
    /// When the request of the first began.
    pub since: Instant,
    /// Where the first that may not leave begins, and why.
    pub broken: Option<(usize, AppendError)>,
}

impl Promises {
    /// What the events are appended with.
    pub(super) fn ticket(&self) -> &Rc<AckToken> {
        &self.ticket
    }

    /// Notes the answer that begins at `begins` of the output.
    pub(super) fn add(&mut self, begins: usize, started: Instant, charge: Option<Charge>) {
        self.since.get_or_insert(started);
        if charge.is_some() {
            self.charges.resize_with(self.begins.len(), || None);
            self.charges.push(charge);
        }
        self.begins.push(begins);
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.begins.is_empty()
    }

    /// Waits until the events of all of them are settled, and forgets them. What was refused is not charged.
    pub(super) async fn settled(&mut self) -> Settled {
        self.ticket.settled().await;
        let since = self.since.take().unwrap_or_else(Instant::now);
        let troubles = self.ticket.clear();
        let broken = troubles.first().map(|(position, trouble)| (self.begins[*position as usize], *trouble));
        let kept = troubles.first().map_or(self.begins.len() as u32, |(position, _)| *position);
        for (position, trouble) in &troubles {
            if let AppendError::Refused(_) = trouble
                && let Some(charge) = self.charges.get_mut(*position as usize).and_then(Option::take)
            {
                charge.give_back();
            }
        }
        self.begins.clear();
        self.charges.clear();
        Settled { kept, since, broken }
    }
}
