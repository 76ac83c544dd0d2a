//! Responses that are rendered but must not be sent until their events are durable.
//!
//! One connection's 202s for single events collect here, with the place in its output where each begins. The connection
//! sends them, in order, when the journal has made their events durable. If the journal could not, the output is cut at
//! the first such response.

use std::rc::Rc;
use std::time::Instant;

use millrace_base::event::EventId;
use millrace_journal::{AckToken, AppendError};

use super::Charge;

/// An event that was accepted, and when its request began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    pub id: EventId,
    pub started: Instant,
}

/// The pending acknowledgements of one connection.
#[derive(Default)]
pub(super) struct PendingAcks {
    ack_token: Rc<AckToken>,
    /// Where in the output each response begins.
    begins: Vec<usize>,
    /// The charge of each against its organisation's rate limit. Shorter than `begins` if the last have none.
    charges: Vec<Option<Charge>>,
    /// When the request of the first response began.
    since: Option<Instant>,
}

/// The outcome for all of them.
pub(super) struct Settled {
    /// How many may be sent, counted from the first.
    pub kept: u32,
    /// When the request of the first response began.
    pub since: Instant,
    /// Where the first that must not be sent begins, and why.
    pub broken: Option<(usize, AppendError)>,
}

impl PendingAcks {
    /// The token that their events are appended with.
    pub(super) fn ack_token(&self) -> &Rc<AckToken> {
        &self.ack_token
    }

    /// Adds the response that begins at `begins` of the output.
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

    /// Waits until the fate of every event is known, and empties the list. Refused events are uncharged.
    pub(super) async fn settled(&mut self) -> Settled {
        self.ack_token.settled().await;
        let since = self.since.take().unwrap_or_else(Instant::now);
        let failures = self.ack_token.clear();
        let broken = failures.first().map(|(position, failure)| (self.begins[*position as usize], *failure));
        let kept = failures.first().map_or(self.begins.len() as u32, |(position, _)| *position);
        for (position, failure) in &failures {
            if let AppendError::Refused(_) = failure
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
