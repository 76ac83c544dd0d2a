//! CLI: the commands, one file each. Reads the arguments, runs one command, and reports the result.
//!
//! Runs on the main thread. Results go to standard output, errors and the log to standard error. Exit codes: 0 done; 1 it
//! could not be done, with the cause and the command that fixes it; 64 the arguments or the configuration are wrong
//! (`EX_USAGE`); 65 the journal is damaged (`EX_DATAERR`). An API key and an endpoint's secret are printed once, where they are
//! made, and never in an error.
//!
//! Clap's own messages repeat what was typed. So what may hold a secret (a database URL, a key given in place of its id)
//! reaches clap as plain text and is checked here or in `config`.

mod bad_argument;
mod bench;
mod config_check;
mod delivery;
mod endpoint;
mod failure;
mod first_run;
mod journal;
mod key;
mod migrate;
mod org;
mod output;
mod quarantine;
mod serve;
mod session;
mod time;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use clap::{Parser, Subcommand};
use core_affinity::CoreId;

use millrace_base::logging;

use crate::config::{self, COMMON_FLAGS_HEADING, Flags, Loaded, ServerFlags, StoreFlags};
use failure::Failure;

/// Exit code for wrong arguments and wrong configuration.
const EX_USAGE: u8 = 64;
/// Exit code for a damaged journal.
const EX_DATAERR: u8 = 65;

/// [`config::CONFIG_FILE_ENV`], in words.
const CONFIG_HELP: &str = "TOML file with settings\n[env: MILLRACE_CONFIG]";

#[derive(Parser)]
#[command(
    name = "millrace",
    version,
    about = "Event ingestion server: POST a JSON event, get a 202, find it in the database"
)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  millrace serve                                  SQLite in ./millrace-data, http://127.0.0.1:3000
  DATABASE_URL=postgres://… millrace serve        Postgres
  millrace org create acme                        an organisation and its first API key
  millrace endpoint create acme https://…         where its events go
  millrace bench                                  how much a running server takes
  millrace config check                           what holds, and where it is set

Settings come from defaults, then the configuration file, then the environment, then flags; the later wins.
`millrace serve --help` lists them all."
)]
struct Cli {
    #[arg(long, global = true, value_name = "FILE", help = CONFIG_HELP, help_heading = COMMON_FLAGS_HEADING)]
    config: Option<PathBuf>,
    #[command(flatten)]
    store: StoreFlags,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server
    #[command(after_help = serve::EXAMPLES)]
    Serve(ServerFlags),
    /// Make, list, change and disable organisations
    Org(org::Org),
    /// Make, list, rotate and revoke API keys
    Key(key::Key),
    /// Make, list, change, test and delete webhook endpoints
    Endpoint(endpoint::Endpoint),
    /// List webhook deliveries and make them again
    Delivery(delivery::Delivery),
    /// List what the database refused, store it again, or drop it
    Quarantine(quarantine::Quarantine),
    /// Bring the database schema up to date
    ///
    /// Safe to run from several machines at once, and beside running servers of this version or the one before.
    Migrate,
    /// Measure a running server: how much it takes, and how fast it answers
    Bench(Box<bench::Bench>),
    /// Look into the journal on disk: what it holds, what is damaged, all its events
    Journal(journal::Journal),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print the effective configuration as TOML, secrets masked, with where each value is set
    #[command(after_help = config_check::EXAMPLES)]
    Check(ServerFlags),
}

/// What every command may need: where the configuration is and how large the machine is.
struct Invocation {
    config_file: Option<PathBuf>,
    store_flags: Flags,
    cores: Vec<CoreId>,
}

impl Invocation {
    /// Loads the configuration with the flags every command takes and these of its own.
    fn load(&self, flags: Flags) -> Result<Loaded, Failure> {
        let flags = self.store_flags.clone().and(flags);
        Ok(config::load(self.config_file.as_deref(), &flags, self.core_count())?)
    }

    /// Cores this process may keep busy: those it is allowed on, or fewer under a CPU quota.
    fn core_count(&self) -> usize {
        thread::available_parallelism().map_or(self.cores.len(), |quota| quota.get().min(self.cores.len())).max(1)
    }
}

/// Runs the command that `args` (program name first) asks for. `cores` are those the process may run on.
pub fn run(args: impl IntoIterator<Item = OsString>, cores: Vec<CoreId>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output; a failure to write them has no place to be reported.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let invocation = Invocation { config_file: cli.config, store_flags: cli.store.0, cores };
    let done = match cli.command {
        Command::Serve(flags) => serve::run(&invocation, flags.0),
        Command::Org(org) => org::run(&invocation, org),
        Command::Key(key) => key::run(&invocation, key),
        Command::Endpoint(endpoint) => endpoint::run(&invocation, endpoint),
        Command::Delivery(delivery) => delivery::run(&invocation, delivery),
        Command::Quarantine(quarantine) => quarantine::run(&invocation, quarantine),
        Command::Migrate => migrate::run(&invocation),
        Command::Bench(bench) => bench::run(&invocation, &bench),
        Command::Journal(journal) => journal::run(journal),
        Command::Config(ConfigCommand::Check(flags)) => config_check::run(&invocation, flags.0),
    };
    if let Err(failure) = &done
        && let Some(message) = failure.message()
    {
        logging::fail(&message);
    }
    logging::flush();
    done.map_or_else(|failure| failure.exit_code(), |()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }
}
