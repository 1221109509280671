//! Sets `IORING_SETUP_COOP_TASKRUN` on glommio's rings.
//!
//! Without it the kernel interrupts a running core for every completion: half of the throughput
//! of a busy server. glommio 0.9 has no option for it, so the linker puts the function below in
//! the place of liburing's (`--wrap`, see build.rs): every reference to
//! `io_uring_queue_init_params` becomes one to `__wrap_..`, and `__real_..` names the original.
//!
//! A kernel before 5.19 answers EINVAL to the flag; the ring is then set up without. Polled rings
//! (IOPOLL) are left alone: nothing interrupts for them. DEFER_TASKRUN is out of the question:
//! glommio looks for completions without entering the kernel.

#![expect(unsafe_code, reason = "a C function in front of a C function")]

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

const IORING_SETUP_IOPOLL: u32 = 1 << 0;
const IORING_SETUP_COOP_TASKRUN: u32 = 1 << 8;

/// `struct io_uring_params` of the kernel's interface, as far as we look into it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    rest: [u32; 27],
}

const _: () = assert!(
    size_of::<Params>() == 120,
    "the kernel's struct has 120 bytes"
);

static COOPERATIVE: AtomicU64 = AtomicU64::new(0);

/// How many rings of this process were set up with the flag. glommio's first executor may set up
/// one to look at what the kernel can do.
pub fn cooperative_rings() -> u64 {
    COOPERATIVE.load(Ordering::Relaxed)
}

unsafe extern "C" {
    fn __real_io_uring_queue_init_params(
        entries: c_uint,
        ring: *mut c_void,
        params: *mut Params,
    ) -> c_int;

    fn io_uring_queue_exit(ring: *mut c_void);
}

/// Sets up a ring and gives it back: whether this process may have any, and why not.
pub(super) fn check() -> io::Result<()> {
    // Room for liburing's `struct io_uring`, which has a little over 200 bytes.
    let mut ring = [0_u64; 64];
    let ring = ring.as_mut_ptr().cast::<c_void>();
    let mut params = Params {
        sq_entries: 0,
        cq_entries: 0,
        flags: 0,
        rest: [0; 27],
    };
    // SAFETY: both point to zeroed memory of the size that liburing needs, which outlives the ring.
    let answer = unsafe { __real_io_uring_queue_init_params(8, ring, &raw mut params) };
    if answer < 0 {
        return Err(io::Error::from_raw_os_error(-answer));
    }
    // SAFETY: the ring was set up by the call above, and is not used after.
    unsafe { io_uring_queue_exit(ring) };
    Ok(())
}

/// What glommio calls to set up a ring. Returns 0, or a negative errno.
///
/// # Safety
/// As liburing's function of the same name: `ring` and `params` point to its structs.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_io_uring_queue_init_params(
    entries: c_uint,
    ring: *mut c_void,
    params: *mut Params,
) -> c_int {
    // SAFETY: the caller passes a valid `struct io_uring_params` (see above), which has no
    // padding and no invalid bit patterns.
    let asked = unsafe { *params };
    if asked.flags & IORING_SETUP_IOPOLL == 0 {
        let cooperative = Params {
            flags: asked.flags | IORING_SETUP_COOP_TASKRUN,
            ..asked
        };
        // SAFETY: as above; the call itself is the caller's own, with one flag more.
        let answer = unsafe {
            *params = cooperative;
            __real_io_uring_queue_init_params(entries, ring, params)
        };
        if answer == 0 {
            COOPERATIVE.fetch_add(1, Ordering::Relaxed);
        }
        if answer != -libc::EINVAL {
            return answer;
        }
    }
    // SAFETY: the caller's own call, with what it passed.
    unsafe {
        *params = asked;
        __real_io_uring_queue_init_params(entries, ring, params)
    }
}
