//! The file with the keys that seal webhook secrets, used when the configuration has none. Read once, at start.
//!
//! **The file gets its name only when it is complete and synced**, and it is never replaced: losing it loses every secret.
//! Only its owner may read or write it.
//!
//! Limit: [`limits::WEBHOOK_SECRET_KEY_FILE_BYTES_MAX`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use millrace_base::limits;

use super::KEY_LEN;

/// Reads the file, and creates it with one random key if it does not exist.
pub(super) fn read_or_create(path: &Path) -> io::Result<Zeroizing<String>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path)?;
            File::open(path)?
        }
        opened => opened?,
    };
    // The process that created the file may not have synced the directory yet, and secrets sealed from here on need the key
    // after a power loss. Fails if this user may not read the directory, which is not an error here.
    let _ = sync_directory_of(path);
    read(file)
}

fn read(file: File) -> io::Result<Zeroizing<String>> {
    if file.metadata()?.mode() & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "others than its owner may read or write the key: `chmod 600` it",
        ));
    }
    let most = limits::WEBHOOK_SECRET_KEY_FILE_BYTES_MAX;
    // Allocated in full: a growing string leaves unwiped copies behind.
    let mut text = Zeroizing::new(String::with_capacity(most as usize + 1));
    file.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large for a file of keys"));
    }
    Ok(text)
}

/// Creates a new key at `path` unless another process did first. The file is complete and synced before it gets that name.
fn create(path: &Path) -> io::Result<()> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    let mut suffix = [0; 8];
    getrandom::fill(key.as_mut())?;
    getrandom::fill(&mut suffix)?;
    let mut text = Zeroizing::new(String::with_capacity(KEY_LEN.div_ceil(3) * 4 + 1));
    STANDARD.encode_string(*key, &mut text);
    text.push('\n');

    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{:016x}.new", u64::from_ne_bytes(suffix)));
    let unfinished = Path::new(&unfinished);
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(unfinished).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        give_to_owner_of_directory(&file, path)?;
        file.sync_all()
    });
    // A link instead of a rename, because it never replaces an existing file.
    let linked = written.and_then(|()| match fs::hard_link(unfinished, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    let _ = fs::remove_file(unfinished);
    linked?;
    sync_directory_of(path)
}

/// When root creates the file with a command, its owner becomes that of the directory, so that the server can read it.
fn give_to_owner_of_directory(file: &File, path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(directory_of(path))?;
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(directory_of(path))?.sync_all()
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use uuid::Uuid;

    use millrace_base::event::EndpointId;

    use super::super::{SecretBox, WebhookSecret};
    use super::*;

    const ENDPOINT: EndpointId = EndpointId(Uuid::nil());

    fn key(byte: u8) -> String {
        STANDARD.encode([byte; KEY_LEN])
    }

    #[test]
    fn a_key_file_is_made_once_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let sealed = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let keys = SecretBox::load_or_create(&path).unwrap();
                        keys.seal(ENDPOINT, &WebhookSecret::generate().unwrap()).unwrap()
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect::<Vec<_>>()
        });
        let later = SecretBox::load_or_create(&path).unwrap();
        assert!(sealed.iter().all(|sealed| later.open(ENDPOINT, sealed).is_ok()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing unfinished is left behind");
    }

    #[test]
    fn key_files_of_others_and_junk_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        for (text, mode, expected) in [
            (key(1), 0o600, None),
            (format!("{}\n", key(1)), 0o400, None),
            (format!("{},{}", key(1), key(2)), 0o600, None),
            (key(1), 0o640, Some("chmod 600")),
            (key(1), 0o604, Some("chmod 600")),
            (key(1), 0o620, Some("chmod 600")),
            (String::new(), 0o600, Some("32 random bytes")),
            ("hunter2".to_owned(), 0o600, Some("32 random bytes")),
            (format!("{}{}", key(1), "\n".repeat(980)), 0o600, None),
            (format!("{}{}", key(1), "\n".repeat(981)), 0o600, Some("too large")),
        ] {
            let _ = fs::remove_file(&path);
            fs::write(&path, &text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = SecretBox::load_or_create(&path).err().map(|error| error.to_string());
            match expected {
                None => assert_eq!(error, None),
                Some(words) => assert!(error.as_ref().is_some_and(|error| error.contains(words)), "{error:?}"),
            }
        }
        let missing = SecretBox::load_or_create(&directory.path().join("no/such/key")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
