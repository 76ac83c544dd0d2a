//! Reads the API keys of a load from a file, one a line, or from the environment.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use zeroize::Zeroizing;

use millrace_bench::limits::{KEY_FILE_BYTES_MAX, KEYS_MAX};

use super::super::failure::Failure;
use crate::config::{API_KEY_ENV, api_key_from_environment};

/// [`API_KEY_ENV`], in words.
pub const FILE_HELP: &str = "File with API keys, one a line; connections have them in turns\n[env: MILLRACE_API_KEY, the \
                             keys themselves, commas between them]";

/// At least one key.
pub type Keys = Vec<Zeroizing<String>>;

/// Reads the keys.
pub fn read(file: Option<&Path>) -> Result<Keys, Failure> {
    let text = match file {
        Some(path) => Some(read_file(path)?),
        None => api_key_from_environment(),
    };
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
        return Err(Failure::Argument(format!(
            "there is no API key: set {API_KEY_ENV}, or name a file with --api-key-file\n  fix: {NEW_KEY}"
        )));
    };
    let keys: Keys = text
        .split(['\n', ','])
        .map(str::trim)
        .filter(|key| !key.is_empty())
        .map(|key| Zeroizing::new(key.to_owned()))
        .collect();
    if keys.len() > KEYS_MAX {
        return Err(Failure::Argument(format!("there are more than {KEYS_MAX} API keys")));
    }
    if keys.iter().any(|key| !key.bytes().all(|byte| byte.is_ascii_graphic())) {
        return Err(Failure::Argument("an API key has characters that no key has".to_owned()));
    }
    Ok(keys)
}

/// Makes an organisation without a limit and puts its key where this command looks for it.
pub const NEW_KEY: &str =
    r"export MILLRACE_API_KEY=$(millrace org create bench --rate-limit 0 --json | grep -o 'mr_\w*')";

fn read_file(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::new());
    let read = File::open(path).and_then(|file| file.take(KEY_FILE_BYTES_MAX + 1).read_to_string(&mut text));
    match read {
        Ok(bytes) if bytes as u64 <= KEY_FILE_BYTES_MAX => Ok(text),
        Ok(_) => {
            Err(Failure::Argument(format!("the key file {} has more than {KEY_FILE_BYTES_MAX} bytes", path.display())))
        }
        Err(error) => Err(Failure::Argument(format!("the key file {} cannot be read: {error}", path.display()))),
    }
}
