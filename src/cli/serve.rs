//! `millrace serve`: configuration, log, then [`boot::serve`] until a signal ends it.

use std::sync::Arc;

use tracing::warn;

use super::failure::Failure;
use super::first_run::first_run_banner;
use super::{Invocation, output};
use crate::boot;
use crate::certificates::Certificates;
use crate::config::{ConfigError, Flags};
use crate::logging;

pub const EXAMPLES: &str = "\
Examples:
  millrace serve
      SQLite in ./millrace-data. The first start prints an API key and a curl line to try it with.
  DATABASE_URL=postgres://app:secret@db/events millrace serve --listen 0.0.0.0:3000
      Postgres, on all interfaces.
  millrace serve --config /etc/millrace.toml --log-format json
      Settings from a file; the keys are those that `millrace config check` prints.

SIGTERM and SIGINT stop it: requests in flight are answered and the queue is drained. A second signal exits at once.
With TLS, SIGHUP reads the certificate files again.";

pub fn run(invocation: &Invocation, flags: Flags) -> Result<(), Failure> {
    let config = invocation.load(flags)?.config;
    logging::init(&config.log, config.log_format).map_err(Failure::Refused)?;
    if !config.ops_listen.ip().is_loopback() {
        warn!(
            address = %config.ops_listen,
            "the operations listener is not on loopback: it has no authentication and few limits, let only your \
             own machines reach it; the main listener answers /metrics too"
        );
    }
    let certificates =
        config.tls.clone().map(|files| Certificates::load(files, config.shards).map(Arc::new)).transpose();
    let certificates = certificates.map_err(|why| Failure::Config(ConfigError::Unusable(why)))?;
    let welcome = |listen, key: &str| output::write(&first_run_banner(listen, key));
    boot::serve(config, certificates, &invocation.cores, welcome).map_err(|error| Failure::Refused(error.to_string()))
}
