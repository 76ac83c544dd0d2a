//! The answers to requests, and how a connection gets those of the slower routes: batches, metrics, control requests.
//!
//! Part of [`Connection`], on its shard. The single event is in [`post_event`](crate::post_event). What another thread
//! must do (rendering metrics, a control request) is awaited through a oneshot channel, and no deadline of the client
//! runs meanwhile.

use std::sync::Arc;
use std::time::Instant;

use millrace_base::problem::Problem;
use millrace_control::{Caller, Job, Reply, ReplyPermit, Request};
use millrace_wire::http::{ContentType, Framing, Head};
use millrace_wire::response::Caching;
use millrace_wire::routes::{self, ControlRoute};

use super::{Abort, Connection, Stream};
use crate::batch::{self, Outcome};
use crate::pending_acks::Accepted;
use crate::wipe::wipe;
use crate::{RequestContext, admit, admit_control, identify, refuse_other_media};

/// The answer to a request that was not refused.
pub(super) enum Answer {
    Accepted(Accepted),
    Json {
        status: u16,
        body: Vec<u8>,
        caching: Caching,
        location: Option<String>,
        permit: Option<ReplyPermit>,
    },
    /// A refusal that says more than one [`Problem`] can.
    Problem {
        status: u16,
        body: Vec<u8>,
    },
    Text {
        content_type: &'static str,
        body: Arc<[u8]>,
    },
    /// The methods that the path takes.
    Options(&'static str),
}

impl Answer {
    pub(super) fn json(status: u16, body: &str, caching: Caching) -> Self {
        Self::Json { status, body: body.as_bytes().to_vec(), caching, location: None, permit: None }
    }
}

impl<S: Stream> Connection<S> {
    /// Answers a batch.
    pub(super) async fn batch(&mut self, head: &Head, context: &mut RequestContext) -> Result<Answer, Abort> {
        Ok(match batch::post_events(self, head, context).await? {
            Outcome::Taken(body) => {
                Answer::Json { status: 202, body, caching: Caching::Default, location: None, permit: None }
            }
            Outcome::NothingTaken(body) => Answer::Problem { status: 422, body },
        })
    }

    /// Has the control pool render the metrics, if this listener may show them.
    pub(super) async fn metrics_page(&mut self) -> Result<Answer, Abort> {
        if !self.shard.shared.are_metrics_public {
            return Err(Problem::NotFound.into());
        }
        let page = self.shard.control.metrics_page()?;
        self.wait_for_server();
        let body = page.await.map_err(|_| Problem::Internal)?;
        Ok(Answer::Text { content_type: "text/plain; version=0.0.4", body })
    }

    /// Hands a control request to the control pool and waits for the reply.
    pub(super) async fn control(
        &mut self,
        route: ControlRoute,
        head: &Head,
        context: &mut RequestContext,
    ) -> Result<Answer, Abort> {
        let tenant = identify(self, head, Instant::now(), context).await?;
        // Before the body is read, because that may move the head.
        let from = self.client_address(head);
        let query = head.query.map_or(&b""[..], |query| query.slice(self.request()));
        let query = String::from_utf8_lossy(query).into_owned();
        admit_control(&self.shard, &tenant, context, route.row().scope)?;
        let body = self.control_body(route.row().body, head).await?;
        if matches!(route, ControlRoute::TestEndpoint(_)) {
            // A test creates an event, so it counts as one.
            admit(&self.shard, &tenant, context)?;
        }
        let caller = Caller { org: tenant.grant.org, key: tenant.grant.key, from };
        let request = Request { route, query, body: body.into() };
        let reply = match self.shard.control.submit(Job { caller, request }) {
            Ok(reply) => {
                self.wait_for_server();
                reply.await.unwrap_or(Err(Problem::Internal))
            }
            Err(problem) => Err(problem),
        };
        let reply = reply.map_err(Abort::Refuse).inspect_err(|abort| context.settle(abort))?;
        let Reply { status, body, location, permit } = reply;
        Ok(Answer::Json { status, body, caching: Caching::Never, location, permit: Some(permit) })
    }

    /// Reads the body of a control request, if its route takes one. The bytes are wiped from the read buffer, because
    /// they may hold a webhook's secret.
    async fn control_body(&mut self, takes: routes::Body, head: &Head) -> Result<Vec<u8>, Abort> {
        let routes::Body::Json(max) = takes else { return Ok(Vec::new()) };
        if head.framing == Framing::None {
            return Ok(Vec::new());
        }
        refuse_other_media(head, ContentType::Json)?;
        let mut read = self.read_body(head, max).await?;
        let body = self.body(&read).to_vec();
        wipe(self.body_mut(&mut read));
        Ok(body)
    }
}
