//! What cargo's output says about the tests: a line for each binary, totals, and what is wrong.

use std::fmt::{self, Display, Formatter};

/// A longer name is cut in most terminals, and nobody greps for it.
const NAME_MAX: usize = 60;

/// See the module.
#[derive(Debug, Default)]
pub struct Summary {
    binaries: Vec<Binary>,
    /// What must not be.
    pub problems: Vec<String>,
}

#[derive(Debug, Default)]
struct Binary {
    name: String,
    passed: u64,
    failed: u64,
    ignored: u64,
    filtered: u64,
}

impl Summary {
    /// Of a log; where nothing `is_filtered`, no test may be left out.
    pub fn of(log: &str, is_filtered: bool) -> Self {
        let mut summary = Self::default();
        let mut name = None;
        for line in log.lines() {
            if let Some(of) = name_of(line) {
                name = Some(of);
            } else if let Some(counts) = line.strip_prefix("test result: ") {
                summary.binaries.push(Binary::of(name.take(), counts));
            } else if let Some(test) = test_of(line).filter(|test| test.len() > NAME_MAX) {
                summary.problems.push(format!("{test}: a test's name has at most {NAME_MAX} characters"));
            }
        }
        summary.judge(is_filtered);
        summary
    }

    fn judge(&mut self, is_filtered: bool) {
        let mut problem = |is_one: bool, text: String| {
            if is_one {
                self.problems.push(text);
            }
        };
        for Binary { name, passed, failed, filtered, .. } in &self.binaries {
            if !is_filtered {
                problem(*filtered > 0, format!("{name}: {filtered} tests filtered out without a filter"));
                problem(name.starts_with("tests/") && passed + failed == 0, format!("{name}: holds no test"));
            }
        }
        let sum = |of: fn(&Binary) -> u64| self.binaries.iter().map(of).sum::<u64>();
        let (run, failed, ignored) = (sum(|b| b.passed + b.failed), sum(|b| b.failed), sum(|b| b.ignored));
        problem(run == 0, "no test ran".to_owned());
        problem(failed > 0, format!("{failed} tests failed"));
        problem(ignored > 0, format!("{ignored} tests were ignored"));
    }
}

/// The name of the binary whose tests follow, where the line announces one: the file of an integration test, the crate of
/// unit tests and examples in documents.
fn name_of(line: &str) -> Option<String> {
    if let Some(name) = line.trim_start().strip_prefix("Doc-tests ") {
        return Some(format!("{name}, doc tests"));
    }
    let (file, program) = line.trim_start().strip_prefix("Running ")?.rsplit_once(" (")?;
    if !file.starts_with("unittests ") {
        return Some(file.to_owned());
    }
    // target/debug/deps/millrace_base-0123456789abcdef
    let program = program.trim_end_matches(')').rsplit('/').next()?;
    Some(program.rsplit_once('-')?.0.to_owned())
}

/// The test whose result the line tells, without its modules: `test a::b::name ... ok`. An example in a document has none.
fn test_of(line: &str) -> Option<&str> {
    let (path, _) = line.strip_prefix("test ")?.split_once(" ... ")?;
    path.rsplit("::").next().filter(|name| !name.contains(' '))
}

impl Binary {
    /// `ok. 1 passed; 2 failed; 3 ignored; 4 measured; 5 filtered out; finished in 0.01s`
    fn of(name: Option<String>, counts: &str) -> Self {
        let words: Vec<&str> = counts.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        let count = |what: &str| {
            let at = words.iter().position(|word| *word == what);
            at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok()).unwrap_or_default()
        };
        Self {
            name: name.unwrap_or_else(|| "?".to_owned()),
            passed: count("passed"),
            failed: count("failed"),
            ignored: count("ignored"),
            filtered: count("filtered"),
        }
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut total = Binary { name: "total".to_owned(), ..Binary::default() };
        for binary in &self.binaries {
            total.passed += binary.passed;
            total.failed += binary.failed;
            total.ignored += binary.ignored;
        }
        let ran = |binary: &&Binary| binary.passed + binary.failed + binary.ignored > 0;
        for Binary { name, passed, failed, ignored, .. } in self.binaries.iter().filter(ran).chain([&total]) {
            writeln!(f, "{name:<34} {passed:6} passed {failed:4} failed {ignored:4} ignored")?;
        }
        self.problems.iter().try_for_each(|problem| writeln!(f, "PROBLEM: {problem}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
     Running unittests src/base/lib.rs (target/debug/deps/millrace_base-0123456789abcdef)

running 2 tests
test a ... ok
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s

     Running tests/it/main.rs (target/debug/deps/it-0123456789abcdef)
test result: ok. 30 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s

   Doc-tests millrace_base
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn binaries_that_ran_tests_have_a_line_each() {
        let summary = Summary::of(GOOD, false);
        assert_eq!(summary.problems, [""; 0]);
        let text = summary.to_string();
        let names: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
        assert_eq!(names, ["millrace_base", "tests/it/main.rs", "total"]);
        assert!(text.ends_with("    32 passed    0 failed    0 ignored\n"), "{text}");
    }

    #[test]
    fn failed_ignored_filtered_missing_and_long_tests_are_problems() {
        let problems = |log: &str, is_filtered| Summary::of(log, is_filtered).problems;
        assert_eq!(problems("", true), ["no test ran"]);
        let filtered = GOOD.replace("30 passed; 0 failed; 0 ignored", "0 passed; 0 failed; 0 ignored");
        let filtered = filtered.replacen("0 filtered", "9 filtered", 1);
        assert_eq!(problems(&filtered, true), [""; 0]);
        assert_eq!(
            problems(&filtered, false),
            ["millrace_base: 9 tests filtered out without a filter", "tests/it/main.rs: holds no test"]
        );
        let long = "a_name".repeat(11);
        let named = GOOD.replace("test a ... ok", &format!("test module::{long} ... ok"));
        assert_eq!(problems(&named, false), [format!("{long}: a test's name has at most 60 characters")]);
        let bad = GOOD.replace("30 passed; 0 failed; 0 ignored", "27 passed; 1 failed; 2 ignored");
        assert_eq!(problems(&bad, false), ["1 tests failed", "2 tests were ignored"]);
    }
}
