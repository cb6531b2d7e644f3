//! All unsafe code of the crate, as small primitives that are safe to call.

#![allow(unsafe_code)]

/// Calls into the C interfaces of allocators.
#[cfg(any(
    all(feature = "glibc", target_os = "linux", target_env = "gnu"),
    feature = "jemalloc",
    feature = "mimalloc"
))]
pub(crate) mod allocators {
    /// Has glibc give free pages of all its arenas back to the system (`malloc_trim(3)`).
    #[cfg(all(feature = "glibc", target_os = "linux", target_env = "gnu"))]
    pub(crate) fn glibc_trim() {
        // SAFETY: it takes a number and no pointer, and is safe to call from any thread.
        unsafe { libc::malloc_trim(0) };
    }

    /// Bytes that glibc has given out: from its arenas and as mappings of their own (`mallinfo2(3)`).
    #[cfg(all(feature = "glibc", target_os = "linux", target_env = "gnu"))]
    pub(crate) fn glibc_allocated() -> u64 {
        // SAFETY: it takes nothing and returns a plain structure by value, from any thread.
        let info = unsafe { libc::mallinfo2() };
        (info.uordblks + info.hblkhd) as u64
    }

    /// Reads a number of jemalloc's statistics, after it has been told to bring them up to date.
    ///
    /// `None` where this jemalloc has no such number.
    #[cfg(feature = "jemalloc")]
    pub(crate) fn jemalloc_number(name: &core::ffi::CStr) -> Option<usize> {
        let mut value = 0usize;
        let mut length = size_of::<usize>();
        // SAFETY: the name ends in a zero byte; `value` and `length` outlive the call, and `length` says
        // how many bytes `value` has, which mallctl checks before it writes.
        let failed = unsafe {
            tikv_jemalloc_sys::mallctl(
                name.as_ptr(),
                (&raw mut value).cast(),
                &raw mut length,
                core::ptr::null_mut(),
                0,
            )
        };
        (failed == 0 && length == size_of::<usize>()).then_some(value)
    }

    /// Has jemalloc bring its statistics up to date.
    #[cfg(feature = "jemalloc")]
    pub(crate) fn jemalloc_refresh() -> bool {
        let mut epoch = 1u64;
        // SAFETY: the name ends in a zero byte, and `epoch` holds the eight bytes that are announced;
        // nothing is asked back.
        let failed = unsafe {
            tikv_jemalloc_sys::mallctl(
                c"epoch".as_ptr(),
                core::ptr::null_mut(),
                core::ptr::null_mut(),
                (&raw mut epoch).cast(),
                size_of::<u64>(),
            )
        };
        failed == 0
    }

    /// Runs a command of jemalloc that takes and gives nothing, such as a purge; tells whether it has it.
    ///
    /// Such a command refuses any argument, so all pointers must be null.
    #[cfg(feature = "jemalloc")]
    pub(crate) fn jemalloc_command(name: &core::ffi::CStr) -> bool {
        // SAFETY: the name ends in a zero byte, and with null pointers nothing is read or written.
        let failed = unsafe {
            tikv_jemalloc_sys::mallctl(
                name.as_ptr(),
                core::ptr::null_mut(),
                core::ptr::null_mut(),
                core::ptr::null_mut(),
                0,
            )
        };
        failed == 0
    }

    /// Has mimalloc collect this thread's free pages and give free pages of all arenas back.
    #[cfg(feature = "mimalloc")]
    pub(crate) fn mimalloc_collect() {
        // SAFETY: it takes a flag and no pointer, and initializes mimalloc for this thread by itself.
        unsafe { libmimalloc_sys::mi_collect(true) };
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[cfg(all(feature = "glibc", target_os = "linux", target_env = "gnu"))]
        #[test]
        fn glibc_counts_what_is_allocated() {
            let before = glibc_allocated();
            let block = std::hint::black_box(vec![1u8; 32 << 20]);
            assert!(glibc_allocated() >= before + (16 << 20));
            drop(block);
            glibc_trim();
        }

        #[cfg(feature = "jemalloc")]
        #[test]
        fn jemalloc_knows_the_names_it_has_and_no_others() {
            assert!(jemalloc_refresh());
            assert!(jemalloc_number(c"stats.resident").is_some());
            assert_eq!(jemalloc_number(c"stats.nothing"), None);
            assert!(!jemalloc_command(c"arena.nothing"));
        }

        #[cfg(feature = "mimalloc")]
        #[test]
        fn mimalloc_collects_where_it_is_not_the_allocator() {
            mimalloc_collect();
        }
    }
}
