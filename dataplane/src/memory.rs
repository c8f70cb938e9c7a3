//! Memory that a burst took goes back to the system: to take in a snapshot needs several times what is kept of it, and the
//! C library would keep that for ever.
#![cfg_attr(
    target_env = "gnu",
    expect(
        unsafe_code,
        reason = "one call into the C library, without arguments that point anywhere"
    )
)]

/// Gives back what is free. Milliseconds; for after something large.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time, from any thread; it only releases pages that hold nothing.
    unsafe {
        libc::malloc_trim(0);
    }
}
