//! Libraries that cannot be used: a status that says where was looked and what to do, never an
//! abort, and no harm to a later attempt. In a program of its own, since a process opens NIXL once.

mod nixl_support;
use nixl_support::*;

use kvferry::error::Status;
use kvferry::transport::nixl::probe;

#[test]
fn a_library_that_cannot_be_used_is_a_status() {
    let text = std::env::temp_dir().join(unique("kvferry-not-a-library"));
    std::fs::write(&text, b"this is no library").expect("a file");
    let text = text.to_string_lossy().into_owned();
    for (path, why) in [
        ("/no/such/libnixl_capi.so", "No such file"),
        // A library, but another one.
        ("libm.so.6", "nixl_capi_create_configured_agent"),
        (text.as_str(), "libnixl_capi.so"),
        ("a\0b", "NUL"),
    ] {
        let mut o = options(&unique("a"));
        o.nixl_library = Some(path.into());
        let e = fail(kvferry::transport::create(&o));
        assert_eq!(e.status(), Status::NoBackend, "{e}");
        for part in [
            why,
            path,
            "1.5.0",
            "pip install --no-deps nixl-cu12",
            "KVF_NIXL_LIBRARY",
        ] {
            assert!(e.message().contains(part), "{part:?} is not in: {e}");
        }
        let report = probe(Some(path));
        assert_eq!(report.path, None);
        assert_eq!(report.error.as_deref(), Some(e.message()));
        assert_eq!(report.tried.len(), 1);
    }
    std::fs::remove_file(text).expect("clean up");
    if have_nixl() {
        agent(&unique("a"))
            .close()
            .expect("the right library still works");
    }
}
