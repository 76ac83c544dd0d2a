//! `millrace serve`: loads the configuration, starts the log, and runs [`boot::serve`] until a signal ends it.

use std::sync::Arc;

use tracing::{info, warn};

use millrace_base::logging;
use millrace_ingest::certificates::Certificates;

use super::Invocation;
use super::failure::Failure;
use super::first_run::show_first_key;
use crate::boot::{self, ServeError};
use crate::config::{ConfigError, Flags};

pub const EXAMPLES: &str = "\
Examples:
  millrace serve
      SQLite in ./millrace-data. The first start prints an API key and a curl line to try it with; where it does not run
      in a terminal, the key is in the file first-api-key in the data directory.
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
            "the operations listener is not on loopback and has no authentication: let only your own machines reach it"
        );
    }
    let (allowed, count) = (invocation.cores.len(), invocation.core_count());
    if count < allowed {
        info!(
            cores = allowed,
            quota = count,
            "a CPU quota leaves fewer cores than this process may run on: what is counted per core follows the quota; \
             --no-pin lets shards move to a core that is free"
        );
    }
    let certificates = config.tls().map(|files| Certificates::load(files, config.shards).map(Arc::new)).transpose();
    let certificates = certificates.map_err(|why| Failure::Config(ConfigError::Unusable(why)))?;
    boot::serve(config, certificates, &invocation.cores, show_first_key).map_err(|error| match error {
        ServeError::Configuration(why) => Failure::Config(ConfigError::Unusable(why)),
        ServeError::Failed(error) => Failure::Refused(error.to_string()),
    })
}
