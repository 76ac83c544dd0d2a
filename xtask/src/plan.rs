//! What the command line asks for.

use std::fs;

use crate::Failure;

/// Where a campaign's test is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// A module of `tests/campaigns`, as a filter of test names.
    Module(&'static str),
    /// A test binary of its own.
    Binary(&'static str),
}

/// A campaign, told in the environment how long it runs.
struct Campaign {
    /// On the command line.
    word: &'static str,
    target: Target,
    is_release: bool,
    /// Values where no option sets them.
    defaults: &'static [(&'static str, &'static str)],
    /// An option of the command line, and the variable it sets.
    options: &'static [(&'static str, &'static str)],
    /// The variable that an obligatory directory sets.
    directory: Option<&'static str>,
}

const CAMPAIGNS: [Campaign; 6] = [
    Campaign {
        word: "crash",
        target: Target::Module("crash::"),
        is_release: false,
        defaults: &[("MILLRACE_CRASH_ROUNDS", "200")],
        options: &[
            ("--rounds", "MILLRACE_CRASH_ROUNDS"),
            ("--seed", "MILLRACE_CRASH_SEED"),
            ("--store", "MILLRACE_CRASH_STORE"),
            ("--fault", "MILLRACE_CRASH_FAULT"),
        ],
        directory: None,
    },
    Campaign {
        word: "outage",
        target: Target::Module("outage::"),
        is_release: true,
        defaults: &[("MILLRACE_OUTAGE_SECONDS", "60"), ("MILLRACE_OUTAGE_RATE", "5000")],
        options: &[("--seconds", "MILLRACE_OUTAGE_SECONDS"), ("--rate", "MILLRACE_OUTAGE_RATE")],
        directory: None,
    },
    Campaign {
        word: "json",
        target: Target::Module("json_suite::"),
        is_release: false,
        defaults: &[],
        options: &[],
        directory: Some("MILLRACE_JSON_SUITE"),
    },
    Campaign {
        word: "chaos",
        target: Target::Module("chaos::"),
        is_release: false,
        defaults: &[("MILLRACE_CHAOS_MINUTES", "30")],
        options: &[("--minutes", "MILLRACE_CHAOS_MINUTES"), ("--seed", "MILLRACE_CHAOS_SEED")],
        directory: None,
    },
    Campaign {
        word: "webhooks",
        target: Target::Module("webhooks::"),
        is_release: false,
        defaults: &[("MILLRACE_WEBHOOKS_MINUTES", "30")],
        options: &[("--minutes", "MILLRACE_WEBHOOKS_MINUTES"), ("--seed", "MILLRACE_WEBHOOKS_SEED")],
        directory: None,
    },
    Campaign {
        word: "api",
        target: Target::Binary("api_tools"),
        is_release: false,
        defaults: &[("MILLRACE_API_EXAMPLES", "200")],
        options: &[("--examples", "MILLRACE_API_EXAMPLES"), ("--seed", "MILLRACE_API_SEED")],
        directory: None,
    },
];

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// Run tests with cargo.
    Tests(Tests),
    /// `perf/guard` alone.
    Instructions {
        /// Move its baseline.
        accept: bool,
    },
    /// Licences, sources and advisories of the dependencies.
    Supply,
}

/// Which tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tests {
    /// Part of the tests' names; all without.
    filter: Option<String>,
    campaign: Option<(Target, bool)>,
    /// For the tests.
    pub environment: Vec<(&'static str, String)>,
    /// Whether the tools of `tests/campaigns/api_tools` are used.
    pub needs_api_tools: bool,
}

impl Plan {
    /// The arguments behind `test`.
    pub fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let Some((first, rest)) = arguments.split_first() else { return Ok(Self::Tests(Tests::default())) };
        if let Some(campaign) = CAMPAIGNS.iter().find(|campaign| campaign.word == first) {
            return Ok(Self::Tests(campaign.parse(rest)?));
        }
        match (first.as_str(), rest) {
            ("supply", []) => Ok(Self::Supply),
            ("instructions", []) => Ok(Self::Instructions { accept: false }),
            ("instructions", [accept]) if accept == "--accept" => Ok(Self::Instructions { accept: true }),
            (option, _) if option.starts_with('-') => Err(format!("unknown option {option}")),
            (name, []) => Ok(Self::Tests(Tests { filter: Some(name.to_owned()), ..Tests::default() })),
            (name, [more, ..]) => Err(format!("{more} says nothing behind {name}")),
        }
    }
}

impl Campaign {
    fn parse(&self, arguments: &[String]) -> Result<Tests, Failure> {
        let mut environment: Vec<(&'static str, String)> =
            self.defaults.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let mut rest = arguments;
        if let Some(variable) = self.directory {
            let [directory, others @ ..] = rest else { return Err(format!("{} needs a directory", self.word)) };
            let path = fs::canonicalize(directory).map_err(|error| format!("{directory}: {error}"))?;
            environment.push((variable, path.to_string_lossy().into_owned()));
            rest = others;
        }
        while let [option, others @ ..] = rest {
            let known = self.options.iter().find(|(flag, _)| flag == option);
            let (_, variable) = known.ok_or_else(|| format!("{} has no option {option}", self.word))?;
            let [value, others @ ..] = others else { return Err(format!("{option} needs a value")) };
            environment.retain(|(name, _)| name != variable);
            environment.push((variable, value.clone()));
            rest = others;
        }
        let needs_api_tools = self.target == Target::Binary("api_tools");
        Ok(Tests { filter: None, campaign: Some((self.target, self.is_release)), environment, needs_api_tools })
    }
}

impl Tests {
    /// Whether nothing is left out.
    pub fn is_everything(&self) -> bool {
        !self.is_filtered()
    }

    /// Whether tests are left out on purpose.
    pub fn is_filtered(&self) -> bool {
        self.filter.is_some() || self.campaign.is_some()
    }

    /// Behind `cargo test`. The dev profile is used on purpose: the release profile's fat LTO costs minutes for every test
    /// binary.
    pub fn cargo_arguments(&self) -> Vec<&str> {
        let mut arguments = vec!["--locked"];
        match self.campaign {
            None => arguments.extend(["--workspace", "--no-fail-fast"]),
            Some((target, is_release)) => {
                arguments.extend(is_release.then_some("--release"));
                match target {
                    Target::Module(module) => arguments.extend(["--test", "campaigns", "--", "--nocapture", module]),
                    Target::Binary(binary) => arguments.extend(["--test", binary, "--", "--nocapture"]),
                }
            }
        }
        arguments.extend(self.filter.as_deref());
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Plan, Failure> {
        Plan::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    fn tests(words: &[&str]) -> Tests {
        match parse(words) {
            Ok(Plan::Tests(tests)) => tests,
            other => panic!("{words:?} is {other:?}"),
        }
    }

    #[test]
    fn no_argument_is_everything_and_a_name_is_a_filter() {
        assert!(tests(&[]).is_everything());
        let named = tests(&["crash_of_the_writer"]);
        assert!(named.is_filtered() && !named.is_everything());
        assert_eq!(named.cargo_arguments().last(), Some(&"crash_of_the_writer"));
    }

    #[test]
    fn an_option_of_a_campaign_replaces_its_default() {
        let crash = tests(&["crash", "--seed", "7", "--rounds", "3"]);
        let expected = [("MILLRACE_CRASH_SEED", "7"), ("MILLRACE_CRASH_ROUNDS", "3")];
        assert_eq!(crash.environment, expected.map(|(name, value)| (name, value.to_owned())));
        assert_eq!(tests(&["crash"]).environment, [("MILLRACE_CRASH_ROUNDS", "200".to_owned())]);
        assert_eq!(
            tests(&["outage"]).cargo_arguments(),
            ["--locked", "--release", "--test", "campaigns", "--", "--nocapture", "outage::"]
        );
        assert!(tests(&["api"]).needs_api_tools);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for words in [
            &["--verbose"][..],
            &["crash", "--minutes", "3"],
            &["crash", "--rounds"],
            &["json"],
            &["json", "/no/such/directory"],
            &["supply", "chain"],
            &["instructions", "--reject"],
            &["one", "two"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
