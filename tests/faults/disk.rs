//! File systems of a test's own, and what may be done to them.
//!
//! Everything here is made by the system's programs, run as child processes, and taken back on
//! drop: a mount, then its loop device, then what serves that. Processes are ended by their own
//! handle only.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{PATIENCE, QUOIT};

/// Cuts a file system off from its device, as a power cut would: nothing more is written, not even
/// the journal (EXT4_IOC_SHUTDOWN, without flushing the log).
const CUT: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], 0), 0x8004587d, struct.pack('I', 2))";

/// The seconds that a program of the system may take.
const PROGRAM_SECONDS: &str = "30";

/// Says why the test is skipped, so that it is seen even if output is captured. False.
pub fn skip(test: &str, why: &str) -> bool {
    // There is nobody to tell if even that fails.
    let _ = writeln!(io::stderr(), "\n!!! SKIPPED {test}: {why}\n");
    false
}

/// True if file systems may be made here, and `programs` are there. Else it says so.
pub fn can(test: &str, programs: &[&str]) -> bool {
    // They mount and break file systems, and depend on the kernel's timing: nobody gets them
    // unasked.
    if std::env::var_os("QUOIT_FAULTS").is_none() {
        return skip(test, "run it with QUOIT_FAULTS=1");
    }
    // The owner of what this process says of itself is whom it acts as.
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !is_root {
        return skip(test, "only root may mount a file system");
    }
    if !Path::new("/dev/loop-control").exists() {
        return skip(test, "there are no loop devices");
    }
    let base = ["losetup", "mkfs.ext4", "mount", "umount", "timeout"];
    for program in base.iter().chain(programs) {
        if !has_program(program) {
            return skip(test, &format!("`{program}` is not installed"));
        }
    }
    true
}

fn has_program(name: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::env::split_paths(&paths).chain(["/sbin".into(), "/usr/sbin".into()]);
    dirs.any(|dir| dir.join(name).is_file())
}

/// Runs a program of the system to its end: what it said, or how it failed.
pub fn run(words: &[&str]) -> Result<String, String> {
    let output = Command::new("timeout")
        .args(["-k", "1", PROGRAM_SECONDS])
        .args(words)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("timeout: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.success() {
        true => Ok(said),
        false => {
            let errors = String::from_utf8_lossy(&output.stderr);
            Err(format!("{words:?}: {}, {errors}{said}", output.status))
        }
    }
}

fn must(words: &[&str]) -> String {
    run(words).unwrap_or_else(|error| panic!("{error}"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a test's paths are text")
}

/// `quoit check`: everything under `data` is sound, or this panics with what it said.
pub fn assert_sound(data: &Path) {
    if let Err(said) = run(&[QUOIT, "check", text(data)]) {
        panic!("{said}");
    }
}

/// A loop device.
struct Loop(String);

impl Loop {
    fn on(file: &Path) -> Loop {
        Loop(must(&["losetup", "-f", "--show", text(file)]))
    }

    /// Without a cache between it and the file.
    fn direct(file: &Path) -> Loop {
        Loop(must(&[
            "losetup",
            "-f",
            "--show",
            "--direct-io=on",
            text(file),
        ]))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(error) = run(&["losetup", "-d", &self.0]) {
            eprintln!("{error}");
        }
    }
}

/// A process that goes away with this.
pub struct Helper(pub Child);

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A file that a process serves through FUSE, and behind which it can do as it likes.
struct Served {
    file: PathBuf,
    server: Helper,
}

impl Served {
    fn unmount(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        // The loop device may let go of it a moment later.
        while is_mount_point(&self.file) && Instant::now() < deadline {
            let _ = run(&["umount", text(&self.file)]);
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.unmount();
        // Without its server nothing keeps it.
        let _ = self.server.0.kill();
        let _ = self.server.0.wait();
        if is_mount_point(&self.file) {
            let _ = run(&["umount", "-l", text(&self.file)]);
        }
    }
}

fn is_mount_point(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let is_it = |line: &str| line.split(' ').nth(1) == path.to_str();
    mounts.lines().any(is_it)
}

/// Waits until `check` holds.
pub fn wait_until(what: &str, patience: Duration, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !check() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// An ext4 of a test's own, mounted or not.
pub struct Disk {
    // Fields go in this order.
    device: Loop,
    served: Option<Served>,
    /// Where it is mounted.
    pub path: PathBuf,
}

/// An empty ext4 in a file of so many MiB.
pub fn image(dir: &Path, mib: u64) -> PathBuf {
    let image = dir.join("disk.img");
    let file = fs::File::create(&image).expect("the test's directory is writable");
    file.set_len(mib << 20).expect("a sparse file");
    must(&["mkfs.ext4", "-q", "-F", "-m", "0", text(&image)]);
    image
}

impl Disk {
    /// An ext4 of so many MiB, mounted below `dir`.
    pub fn new(dir: &Path, mib: u64) -> Disk {
        Disk::of(dir, Loop::on(&image(dir, mib)), None)
    }

    /// The ext4 that is in the file `image`, mounted below `dir`.
    pub fn of_image(dir: &Path, image: &Path) -> Disk {
        Disk::of(dir, Loop::on(image), None)
    }

    /// One whose device fails writes, or reads, once the file [`Faulty`] names exists.
    pub fn faulty(dir: &Path, mib: u64, faulty: &Faulty) -> Disk {
        let image = image(dir, mib);
        let mount = dir.join("nbd");
        fs::create_dir(&mount).expect("the test's directory is writable");
        let file = mount.join("disk");
        let mut server = Command::new("nbdfuse");
        server.arg(&file).args(["--command", "nbdkit", "-s"]);
        server.args(["--exit-with-parent", "--filter=error", "file"]);
        server.arg(&image).arg("error=EIO").args(faulty.options());
        Disk::behind(dir, &mount, (&file, Loop::direct), server)
    }

    /// One whose device is the file `export`, which `server` serves by FUSE right there.
    pub fn exported(dir: &Path, export: &Path, server: Command) -> Disk {
        // Without the cache, reads from such a file have been seen to miss what was written last.
        Disk::behind(dir, export, (export, Loop::on), server)
    }

    /// One whose device is `file`, which `server` serves by FUSE at the mount point `mount`.
    fn behind(
        dir: &Path,
        mount: &Path,
        (file, attach): (&Path, fn(&Path) -> Loop),
        mut server: Command,
    ) -> Disk {
        let child = server
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let served = Served {
            server: Helper(child.expect("it is installed")),
            file: mount.to_owned(),
        };
        wait_until("the device is served", PATIENCE, || {
            is_mount_point(mount) && fs::metadata(file).is_ok_and(|file| file.len() > 0)
        });
        Disk::of(dir, attach(file), Some(served))
    }

    fn of(dir: &Path, device: Loop, served: Option<Served>) -> Disk {
        let path = dir.join("disk");
        fs::create_dir_all(&path).expect("the test's directory is writable");
        let mut disk = Disk {
            device,
            served,
            path,
        };
        disk.mount();
        disk
    }

    /// Mounts it. When the kernel meets an error there, it makes it read-only.
    pub fn mount(&mut self) {
        self.try_mount().unwrap_or_else(|error| panic!("{error}"));
    }

    fn try_mount(&self) -> Result<String, String> {
        let options = ["-o", "errors=remount-ro"];
        run(&[
            "mount",
            options[0],
            options[1],
            &self.device.0,
            text(&self.path),
        ])
    }

    /// Unmounts it; nobody may use it any more.
    pub fn unmount(&mut self) {
        // Who has just been killed may take a moment to let go.
        wait_until("it is unmounted", PATIENCE, || {
            !is_mount_point(&self.path) || run(&["umount", text(&self.path)]).is_ok()
        });
    }

    /// Unmounts and mounts it, with its journal replayed.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// The device stays as it is at this moment, as far as the file system goes: a power cut.
    pub fn cut_power(&self) {
        must(&["python3", "-c", CUT, text(&self.path)]);
    }

    /// Unmounts and mounts it; if it needs its own check before that, true.
    pub fn remount_or_repair(&mut self) -> bool {
        self.unmount();
        let is_damaged = self.try_mount().is_err();
        if is_damaged {
            self.repair();
        }
        is_damaged
    }

    /// Unmounts it, lets the file system's own check mend it, and mounts it.
    pub fn repair(&mut self) {
        self.unmount();
        // Its exit code says what it has done: 0 nothing, 1 something.
        if let Err(said) = run(&["e2fsck", "-f", "-y", &self.device.0]) {
            assert!(said.contains("exit status: 1,"), "{said}");
        }
        self.mount();
    }

    /// The kernel takes it for damaged.
    pub fn report_error(&self) {
        let name = self.device.0.trim_start_matches("/dev/");
        let path = format!("/sys/fs/ext4/{name}/trigger_fs_error");
        fs::write(&path, "a test's").unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// A file that takes up space; false if there is none for it.
    pub fn ballast(&self, name: &str, bytes: u64) -> bool {
        let path = self.path.join(name);
        let taken = run(&["fallocate", "-l", &bytes.to_string(), text(&path)]);
        if taken.is_err() {
            // A part of it may be there.
            let _ = fs::remove_file(&path);
        }
        taken.is_ok()
    }

    /// Takes all the space there is, in files of at most so many bytes: their names.
    pub fn take_all(&self, name: &str, bytes: u64) -> Vec<String> {
        let (mut names, mut bytes) = (Vec::new(), bytes);
        while bytes >= 4096 {
            let next = format!("{name}-{}", names.len());
            match self.ballast(&next, bytes) {
                true => names.push(next),
                false => bytes /= 2,
            }
        }
        names
    }

    /// Gives the space of a file back.
    pub fn give_back(&self, name: &str) {
        fs::remove_file(self.path.join(name)).expect("it is there");
    }

    /// The directory of a node here. `Launch` keeps its files beside the data.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// True while what serves it lives.
    pub fn is_served(&mut self) -> bool {
        let served = self.served.as_mut();
        served.is_none_or(|served| matches!(served.server.0.try_wait(), Ok(None)))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while is_mount_point(&self.path) && Instant::now() < deadline {
            if run(&["umount", text(&self.path)]).is_err() {
                thread::sleep(Duration::from_millis(50));
            }
        }
        if is_mount_point(&self.path) {
            let _ = run(&["umount", "-l", text(&self.path)]);
        }
    }
}

/// A device's errors, on demand.
pub struct Faulty {
    reads: PathBuf,
    writes: PathBuf,
    read_percent: u8,
    write_percent: u8,
}

impl Faulty {
    /// None yet. Of reads, and of writes, so many in a hundred will fail.
    pub fn new(dir: &Path, read_percent: u8, write_percent: u8) -> Faulty {
        Faulty {
            reads: dir.join("fail-reads"),
            writes: dir.join("fail-writes"),
            read_percent,
            write_percent,
        }
    }

    fn options(&self) -> Vec<String> {
        vec![
            format!("error-pwrite-rate={}%", self.write_percent),
            format!("error-pwrite-file={}", self.writes.display()),
            format!("error-pread-rate={}%", self.read_percent),
            format!("error-pread-file={}", self.reads.display()),
        ]
    }

    /// From here on writes fail.
    pub fn fail_writes(&self) {
        fs::write(&self.writes, "").expect("the test's directory is writable");
    }

    /// From here on reads fail.
    pub fn fail_reads(&self) {
        fs::write(&self.reads, "").expect("the test's directory is writable");
    }

    /// All is well again.
    pub fn heal(&self) {
        for path in [&self.reads, &self.writes] {
            // It may not have been there.
            let _ = fs::remove_file(path);
        }
    }
}
