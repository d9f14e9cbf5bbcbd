//! Putting this program into a volume, from where other containers start it.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tenancy_fixer::launch::{BINARY, EXIT_COPY};

use crate::say;

/// Copies the binary into a folder, and gives the code to end with.
pub(crate) fn copy_to(folder: &Path) -> u8 {
    match copy(folder) {
        Ok(file) => {
            say(&format!("copied to {}", file.display()));
            0
        }
        Err(error) => {
            say(&format!("cannot copy to {}: {error}, ending with {EXIT_COPY}", folder.display()));
            EXIT_COPY
        }
    }
}

/// Whole or not at all: an init container that is started again finds the old file or the new one, never half of it, and may
/// replace one that is running.
fn copy(folder: &Path) -> io::Result<PathBuf> {
    let file = folder.join(BINARY);
    let unfinished = folder.join(format!(".{BINARY}.{}", std::process::id()));
    let copied = write(&unfinished).and_then(|()| fs::rename(&unfinished, &file));
    if copied.is_err() {
        // Nothing more can be done about it, and the first error is the one that says why.
        let _ = fs::remove_file(&unfinished);
    }
    copied.map(|()| file)
}

fn write(file: &Path) -> io::Result<()> {
    let mut from = File::open(std::env::current_exe()?)?;
    let mut to = File::create(file)?;
    io::copy(&mut from, &mut to)?;
    // For every user, whatever our umask is: the containers that start it have users of their own.
    to.set_permissions(Permissions::from_mode(0o755))
}
