//! A request's arguments: where they lie in the input, with bytes of their own, or borrowed from
//! either.
//!
//! All three are places in one run of bytes, so that commands are parsed from one type,
//! [`ArgView`], whatever the request came as. A request is below 4 GiB, so a place takes 8 bytes.

use std::ops::Range;

use smallvec::SmallVec;

/// Arguments whose places are kept without an allocation.
const ARGS_INLINE: usize = 8;
/// Places that an emptied [`Args`] has memory for, at most.
const ARGS_KEPT_MAX: usize = 256;

/// Where an argument lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range32 {
    start: u32,
    end: u32,
}

impl Range32 {
    #[inline]
    fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }
}

/// Where the arguments of a request lie in the input that it was parsed from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args(SmallVec<[Range32; ARGS_INLINE]>);

impl Args {
    /// No arguments.
    pub fn new() -> Args {
        Args::default()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Argument `i` in `input`. Panics if there is none.
    pub fn get<'a>(&self, input: &'a [u8], i: usize) -> &'a [u8] {
        self.0[i].of(input)
    }

    /// All arguments in `input`.
    pub fn iter<'a>(
        &'a self,
        input: &'a [u8],
    ) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone + 'a {
        self.view(input).iter()
    }

    /// The arguments in `input`, as command parsing takes them.
    pub fn view<'a>(&'a self, input: &'a [u8]) -> ArgView<'a> {
        ArgView {
            bytes: input,
            ranges: &self.0,
        }
    }

    /// Appends the argument that lies there.
    #[inline]
    pub(super) fn push(&mut self, place: Range<u32>) {
        self.0.push(Range32 {
            start: place.start,
            end: place.end,
        });
    }

    /// Forgets them, and the memory of an unusually long list.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.0.clear();
        if self.0.capacity() > ARGS_KEPT_MAX {
            self.0 = SmallVec::new();
        }
    }
}

/// A request's arguments with their bytes: it outlives the input and may go to another core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnedArgs {
    bytes: Vec<u8>,
    args: Args,
}

impl OwnedArgs {
    /// No arguments.
    pub fn new() -> OwnedArgs {
        OwnedArgs::default()
    }

    /// A copy of the arguments that `args` finds in `input`.
    pub fn from_args(args: &Args, input: &[u8]) -> OwnedArgs {
        OwnedArgs::from_view(args.view(input))
    }

    /// A copy of `view`.
    pub fn from_view(view: ArgView<'_>) -> OwnedArgs {
        let bytes = view.iter().map(<[u8]>::len).sum();
        let mut owned = OwnedArgs {
            bytes: Vec::with_capacity(bytes),
            args: Args(SmallVec::with_capacity(view.len())),
        };
        for arg in view.iter() {
            owned.push(arg);
        }
        owned
    }

    /// Appends an argument.
    pub fn push(&mut self, arg: &[u8]) {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(arg);
        let end = u32::try_from(self.bytes.len()).expect("a request is below 4 GiB");
        self.args.push(start..end);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.args.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.args.is_empty()
    }

    /// Argument `i`. Panics if there is none.
    pub fn arg(&self, i: usize) -> &[u8] {
        self.args.get(&self.bytes, i)
    }

    /// All arguments.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + Clone {
        self.view().iter()
    }

    /// The arguments, as command parsing takes them.
    pub fn view(&self) -> ArgView<'_> {
        self.args.view(&self.bytes)
    }
}

/// A request's arguments, borrowed from wherever they are.
#[derive(Clone, Copy)]
pub struct ArgView<'a> {
    bytes: &'a [u8],
    ranges: &'a [Range32],
}

impl<'a> ArgView<'a> {
    /// How many there are.
    #[inline]
    pub fn len(self) -> usize {
        self.ranges.len()
    }

    /// True if there are none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.ranges.is_empty()
    }

    /// Argument `i`, if there is one.
    #[inline]
    pub fn get(self, i: usize) -> Option<&'a [u8]> {
        self.ranges.get(i).map(|range| range.of(self.bytes))
    }

    /// All arguments.
    #[inline]
    pub fn iter(self) -> impl ExactSizeIterator<Item = &'a [u8]> + DoubleEndedIterator + Clone {
        self.ranges.iter().map(move |range| range.of(self.bytes))
    }

    /// The arguments from `i` on; none if there are fewer.
    #[inline]
    pub fn from(self, i: usize) -> ArgView<'a> {
        ArgView {
            bytes: self.bytes,
            ranges: self.ranges.get(i..).unwrap_or(&[]),
        }
    }
}

impl std::fmt::Debug for ArgView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|arg| arg.escape_ascii().to_string()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_copies_give_the_same_view() {
        let input = b"..SET.key..value";
        let mut args = Args::new();
        for place in [2..5, 6..9, 9..9, 11..16] {
            args.push(place);
        }
        let owned = OwnedArgs::from_args(&args, input);
        let expected: [&[u8]; 4] = [b"SET", b"key", b"", b"value"];
        assert!(args.iter(input).eq(expected) && owned.iter().eq(expected));
        assert!((0..4).all(|i| args.get(input, i) == expected[i] && owned.arg(i) == expected[i]));
        for view in [args.view(input), owned.view()] {
            assert_eq!(
                (view.len(), view.get(3), view.get(4)),
                (4, Some(&b"value"[..]), None)
            );
            assert!(view.from(2).iter().eq([&b""[..], b"value"]));
            assert!(view.from(4).is_empty() && view.from(5).is_empty());
            assert_eq!(OwnedArgs::from_view(view.from(1)).arg(0), b"key");
            assert_eq!(format!("{view:?}"), r#"["SET", "key", "", "value"]"#);
        }
        assert_eq!(owned.bytes, b"SETkeyvalue", "only the arguments are copied");
    }

    #[test]
    fn a_long_request_leaves_no_memory_behind() {
        let mut args = Args::new();
        (0..2 * ARGS_KEPT_MAX as u32).for_each(|i| args.push(i..i));
        args.clear();
        assert!(args.is_empty() && args.0.capacity() == ARGS_INLINE);
        (0..20).for_each(|i| args.push(i..i));
        args.clear();
        assert!(
            args.0.capacity() >= 20,
            "a usual length is not allocated anew each time"
        );
    }

    #[test]
    fn a_copy_may_go_to_another_core() {
        fn sendable<T: Send + 'static>(value: T) -> T {
            value
        }
        assert!(sendable(OwnedArgs::new()).is_empty());
    }
}
