//! As the project's own build.rs: lets quoit's `src/rt/ring_flags.rs` stand before liburing's ring
//! set-up.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg=-Wl,--wrap=io_uring_queue_init_params");
}
