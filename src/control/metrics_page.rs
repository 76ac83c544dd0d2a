//! Renders `/metrics` for the shards, because a rendering takes locks and half a millisecond.
//!
//! It has a thread of its own: the workers may all wait for the database, which is when somebody looks at the metrics. One
//! rendering serves everybody who asks within [`METRICS_PAGE_AGE_MAX`], so asking often is not more work.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use futures_channel::oneshot;

use millrace_base::limits::{METRICS_PAGE_AGE_MAX, METRICS_PAGE_WAITING_MAX};
use millrace_base::problem::Problem;
use millrace_metrics::Metrics;

/// Where a rendering is sent.
type PageSender = oneshot::Sender<Arc<[u8]>>;

/// Asks the thread, which ends when this is dropped.
pub(super) struct MetricsPage(Sender<PageSender>);

impl MetricsPage {
    /// Starts the thread.
    pub(super) fn start(metrics: Arc<Metrics>) -> io::Result<Self> {
        let (asked, waiting) = bounded(METRICS_PAGE_WAITING_MAX);
        thread::Builder::new()
            .name("control-metrics".to_owned())
            .spawn(move || render_for_all(|| metrics.render(), &waiting))?;
        Ok(Self(asked))
    }

    /// Asks for a rendering; never blocks. Where a rendering fails, the receiver gets nothing.
    ///
    /// # Errors
    /// [`Problem::ControlBusy`] where too many requests wait.
    pub(super) fn ask(&self) -> Result<oneshot::Receiver<Arc<[u8]>>, Problem> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(answer).map_err(|_| Problem::ControlBusy)?;
        Ok(answered)
    }
}

fn render_for_all(render: impl Fn() -> Vec<u8>, waiting: &Receiver<PageSender>) {
    let mut last: Option<(Instant, Arc<[u8]>)> = None;
    for answer in waiting {
        if answer.is_canceled() {
            continue;
        }
        last = last.filter(|(made_at, _)| made_at.elapsed() < METRICS_PAGE_AGE_MAX);
        if last.is_none() {
            // A panic fails the requests that wait now. It is logged, and the next rendering may succeed.
            last = catch_unwind(AssertUnwindSafe(&render)).ok().map(|page| (Instant::now(), page.into()));
        }
        if let Some((_, page)) = &last {
            // Fails where the client has disconnected.
            let _ = answer.send(Arc::clone(page));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn simultaneous_scrapes_share_a_rendering_and_its_panic() {
        let (asked, waiting) = bounded(8);
        let mut receivers: Vec<_> = (0..4)
            .map(|_| {
                let (answer, answered) = oneshot::channel();
                asked.send(answer).unwrap();
                answered
            })
            .collect();
        drop(receivers.remove(0));
        drop(asked);
        let renderings = Cell::new(0);
        let render = || {
            renderings.set(renderings.get() + 1);
            assert!(renderings.get() > 1, "the first one fails");
            b"page".to_vec()
        };
        render_for_all(render, &waiting);
        let pages: Vec<_> = receivers.iter_mut().map(|answered| answered.try_recv().ok().flatten()).collect();
        let page: Arc<[u8]> = b"page".as_slice().into();
        assert_eq!(pages, [None, Some(Arc::clone(&page)), Some(page)]);
        assert_eq!(renderings.get(), 2, "one that nobody waits for is not made, and the last two share one");
    }
}
