//! Passwords of the system's accounts, by libpam. The library is loaded when it is first asked:
//! neither the build nor a server without such users needs it.
//!
//! The only module of the server with unsafe code. Its declarations are those of
//! `<security/pam_appl.h>`, which Linux-PAM keeps stable.
#![allow(unsafe_code, reason = "libpam is a library of C")]

use libc::{c_char, c_int, c_void};
use libloading::{Library, Symbol};
use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr;
use zeroize::Zeroizing;

const LIBRARY: &str = "libpam.so.0";
const SUCCESS: c_int = 0;
const CONVERSATION_ERROR: c_int = 19;
const BUFFER_ERROR: c_int = 5;
const PROMPT_ECHO_OFF: c_int = 1;
const PROMPT_ECHO_ON: c_int = 2;
/// `PAM_RHOST`
const REMOTE_HOST: c_int = 4;
/// `PAM_SILENT | PAM_DISALLOW_NULL_AUTHTOK`
const FLAGS: c_int = 0x8000 | 1;
/// A module may not ask more at once.
const MESSAGES_MAX: c_int = 32;

#[repr(C)]
struct Message {
    style: c_int,
    text: *const c_char,
}

#[repr(C)]
struct Response {
    text: *mut c_char,
    code: c_int,
}

type Converse = extern "C" fn(c_int, *mut *const Message, *mut *mut Response, *mut c_void) -> c_int;

#[repr(C)]
struct Conversation {
    converse: Converse,
    data: *mut c_void,
}

/// An open transaction of the library.
enum Handle {}

type Start = unsafe extern "C" fn(
    *const c_char,
    *const c_char,
    *const Conversation,
    *mut *mut Handle,
) -> c_int;
type StartWithDir = unsafe extern "C" fn(
    *const c_char,
    *const c_char,
    *const Conversation,
    *const c_char,
    *mut *mut Handle,
) -> c_int;
type Act = unsafe extern "C" fn(*mut Handle, c_int) -> c_int;
type SetItem = unsafe extern "C" fn(*mut Handle, c_int, *const c_void) -> c_int;
type Describe = unsafe extern "C" fn(*mut Handle, c_int) -> *const c_char;

/// Answers every question for a password with the one at hand. `data` is a `*const CString`.
extern "C" fn converse(
    count: c_int,
    messages: *mut *const Message,
    answers: *mut *mut Response,
    data: *mut c_void,
) -> c_int {
    let Ok(number) = usize::try_from(count) else { return CONVERSATION_ERROR };
    if number == 0 || count > MESSAGES_MAX || messages.is_null() || answers.is_null() {
        return CONVERSATION_ERROR;
    }
    // SAFETY: calloc may be called with any sizes; `Response` is plain and may be zero.
    let made = unsafe { libc::calloc(number, size_of::<Response>()) }.cast::<Response>();
    if made.is_null() {
        return BUFFER_ERROR;
    }
    for position in 0..number {
        // SAFETY: Linux-PAM passes `count` pointers to messages, which live during this call, and
        // `data` as `check` gave it. `made` has room for as many responses. strdup gives memory that
        // the library frees, as it frees `made`.
        unsafe {
            let message = *messages.add(position);
            let password = data.cast::<CString>();
            if message.is_null() || password.is_null() {
                continue;
            }
            if (*message).style == PROMPT_ECHO_OFF || (*message).style == PROMPT_ECHO_ON {
                (*made.add(position)).text = libc::strdup((*password).as_ptr());
            }
        }
    }
    // SAFETY: checked not to be null; the library wants the answers there and frees them.
    unsafe { *answers = made };
    SUCCESS
}

/// Whether this is the password of a system account that may be used now.
///
/// `service` names the file of rules, in `rules` or else where the system keeps them. Errors say why
/// not, for the log. May take seconds: modules punish wrong passwords.
pub(crate) fn check(
    service: &str,
    rules: Option<&Path>,
    user: &str,
    password: &str,
    remote: &str,
) -> Result<(), String> {
    use std::os::unix::ffi::OsStrExt;
    let text = |text: &[u8]| CString::new(text).map_err(|_| "it holds a NUL".to_owned());
    let (service, user) = (text(service.as_bytes())?, text(user.as_bytes())?);
    let (password, remote) = (text(password.as_bytes())?, text(remote.as_bytes())?);
    let password = Wiped(password);
    let rules = rules.map(|rules| text(rules.as_os_str().as_bytes())).transpose()?;
    let missing = |error: libloading::Error| format!("realm pam: {LIBRARY} can't be used: {error}");
    // SAFETY: the library's initialisers and symbols are those of Linux-PAM, by its soname, and the
    // types are those of its header.
    let (library, start, start_with_dir, authenticate, account, end, set_item, describe);
    unsafe {
        library = Library::new(LIBRARY).map_err(missing)?;
        start = library.get::<Start>(b"pam_start\0").map_err(missing)?;
        start_with_dir = library.get::<StartWithDir>(b"pam_start_confdir\0");
        authenticate = library.get::<Act>(b"pam_authenticate\0").map_err(missing)?;
        account = library.get::<Act>(b"pam_acct_mgmt\0").map_err(missing)?;
        end = library.get::<Act>(b"pam_end\0").map_err(missing)?;
        set_item = library.get::<SetItem>(b"pam_set_item\0").map_err(missing)?;
        describe = library.get::<Describe>(b"pam_strerror\0").map_err(missing)?;
    }
    let data: *const CString = &raw const password.0;
    let conversation = Conversation { converse, data: data.cast_mut().cast() };
    let mut handle = ptr::null_mut();
    // SAFETY: all strings end in NUL and, like the conversation and the password, outlive the
    // handle, which ends below.
    let mut code = unsafe {
        match &rules {
            None => {
                start(service.as_ptr(), user.as_ptr(), &raw const conversation, &raw mut handle)
            }
            Some(rules) => start_with_dir.map_err(missing)?(
                service.as_ptr(),
                user.as_ptr(),
                &raw const conversation,
                rules.as_ptr(),
                &raw mut handle,
            ),
        }
    };
    if code != SUCCESS || handle.is_null() {
        return Err(explain(&describe, handle, code));
    }
    // SAFETY: the handle is open, and is not used after its end.
    unsafe {
        // Modules that log or count failures want to know from where.
        set_item(handle, REMOTE_HOST, remote.as_ptr().cast());
        code = authenticate(handle, FLAGS);
        if code == SUCCESS {
            code = account(handle, FLAGS);
        }
    }
    let outcome = match code {
        SUCCESS => Ok(()),
        code => Err(explain(&describe, handle, code)),
    };
    // SAFETY: as above; nothing of the library is used later.
    unsafe { end(handle, code) };
    outcome
}

fn explain(describe: &Symbol<'_, Describe>, handle: *mut Handle, code: c_int) -> String {
    // SAFETY: Linux-PAM does not look at the handle, and answers with a constant text or null.
    let text = unsafe {
        let text = describe(handle, code);
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    text.unwrap_or_else(|| format!("libpam says {code}"))
}

/// A password, wiped in the end.
struct Wiped(CString);

impl Drop for Wiped {
    fn drop(&mut self) {
        drop(Zeroizing::new(std::mem::take(&mut self.0).into_bytes_with_nul()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// Rules whose module is a script of ours.
    fn rules(account: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("check");
        let text = "#!/bin/sh\nread -r password\n\
                    [ \"$PAM_USER\" = ann ] && [ \"$PAM_RHOST\" = 192.0.2.7 ] && [ \"$password\" = secret ]\n";
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let lines = format!(
            "auth required pam_exec.so quiet expose_authtok {}\naccount required {account}\n",
            script.display()
        );
        fs::write(dir.path().join("keepwell"), lines).unwrap();
        dir
    }

    #[test]
    fn a_module_decides() {
        // SAFETY: only looks whether the library is there.
        if unsafe { Library::new(LIBRARY) }.is_err() {
            assert!(std::env::var_os("KEEPWELL_TEST_ALL").is_none(), "{LIBRARY} is needed here");
            println!("skipped: there is no {LIBRARY}");
            return;
        }
        let good = rules("pam_permit.so");
        let check = |dir: &tempfile::TempDir, user: &str, password: &str| {
            super::check("keepwell", Some(dir.path()), user, password, "192.0.2.7")
        };
        check(&good, "ann", "secret").unwrap();
        check(&good, "ann", "wrong").unwrap_err();
        check(&good, "bob", "secret").unwrap_err();
        check(&good, "ann", "sec\0ret").unwrap_err();
        let expired = rules("pam_deny.so");
        check(&expired, "ann", "secret").unwrap_err();
        let nowhere = tempfile::tempdir().unwrap();
        check(&nowhere, "ann", "secret").unwrap_err();
    }
}
