//! Numbers in requests and values, read and printed as Redis does.
//!
//! INCRBYFLOAT in Redis adds two `long double`s and prints 17 decimals. What that gives depends on
//! the machine: 1000.1 plus 0 is 1000.09999999999999998 on x86-64. [`add_float`] computes that
//! very answer with integers, on every machine: [`Extended`] is the x87's 80-bit number, rounded
//! to even after reading and after adding, as there. So a client sees what it is used to, and no
//! two nodes differ.

use std::cmp::Ordering;

/// Longer texts are no float to Redis.
const FLOAT_BYTES_MAX: usize = 5 * 1024 - 1;
/// The exponents of an 80-bit number's highest bit: above, it is infinite; below, it is zero.
const EXPONENT_MAX: i64 = 16_383;
const EXPONENT_MIN: i64 = -16_446;
/// Beyond these powers of ten the above need not be computed.
const DECIMAL_EXPONENT_MAX: i64 = 4_934;
const DECIMAL_EXPONENT_MIN: i64 = -4_952;
/// What INCRBYFLOAT prints behind the point, before it drops zeros.
const DECIMALS: u32 = 17;

/// An integer in the one form that Redis prints it: no plus, no blanks, no leading zeros, no "-0".
#[inline]
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    match text {
        [b'-', digits @ ..] => match parse_u64(digits)? {
            0 => None,
            magnitude => 0i64.checked_sub_unsigned(magnitude),
        },
        digits => i64::try_from(parse_u64(digits)?).ok(),
    }
}

/// A natural number in the one form that Redis prints it.
#[inline]
pub fn parse_u64(text: &[u8]) -> Option<u64> {
    match text {
        [b'0'] => return Some(0),
        [b'1'..=b'9', ..] => {}
        _ => return None,
    }
    let mut value: u64 = 0;
    for &byte in text {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(value)
}

/// Why INCRBYFLOAT has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatError {
    /// The value or the increment is no number: "ERR value is not a valid float".
    NotFloat,
    /// The sum is none: "ERR increment would produce NaN or Infinity".
    NotFinite,
}

/// The sum of two numbers, as INCRBYFLOAT in Redis on x86-64 prints it.
pub fn add_float(current: &[u8], increment: &[u8]) -> Result<String, FloatError> {
    let current = Extended::parse(current).ok_or(FloatError::NotFloat)?;
    let increment = Extended::parse(increment).ok_or(FloatError::NotFloat)?;
    match (current, increment) {
        (Literal::Finite(current), Literal::Finite(increment)) => {
            let sum = current.add(increment).ok_or(FloatError::NotFinite)?;
            Ok(sum.print())
        }
        _ => Err(FloatError::NotFinite),
    }
}

/// A decimal number as [`add_float`] reads it, to the precision of an f64. "inf" is one, "nan" and
/// what exceeds an f64 is not.
pub fn parse_float(text: &[u8]) -> Option<f64> {
    let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    let overflown = value.is_infinite() && text.iter().any(u8::is_ascii_digit);
    (!value.is_nan() && !overflown).then_some(value)
}

/// Prints a finite number as INCRBYFLOAT does: 17 decimals, less the zeros at the end.
pub fn format_float_for_incr(value: f64) -> String {
    assert!(value.is_finite(), "INCRBYFLOAT has no infinite result");
    Extended::from_f64(value).print()
}

/// A finite number of the x87 format: `mantissa` times two to the `exponent`. The mantissa's top
/// bit is set, unless the number is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extended {
    negative: bool,
    mantissa: u64,
    exponent: i64,
}

/// What a text says.
enum Literal {
    Finite(Extended),
    Infinite,
}

impl Extended {
    const ZERO: Extended = Extended {
        negative: false,
        mantissa: 0,
        exponent: 0,
    };

    /// Reads what C's `strtold` reads, without leading blanks, NaN, and what is too large or too
    /// small for the format.
    fn parse(text: &[u8]) -> Option<Literal> {
        if text.len() > FLOAT_BYTES_MAX {
            return None;
        }
        let (negative, unsigned) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            rest => (false, rest),
        };
        if unsigned.eq_ignore_ascii_case(b"inf") || unsigned.eq_ignore_ascii_case(b"infinity") {
            return Some(Literal::Infinite);
        }
        let magnitude = match unsigned {
            [b'0', b'x' | b'X', digits @ ..] => Digits::<16>::parse(digits)?.hexadecimal(),
            digits => Digits::<10>::parse(digits)?.decimal(),
        }?;
        Some(Literal::Finite(Extended {
            negative,
            ..magnitude
        }))
    }

    /// The number nearest to `numerator / denominator * 2^exponent`; `None` if that is too large
    /// for the format, or too small.
    fn nearest(
        mut numerator: Natural,
        mut denominator: Natural,
        exponent: i64,
    ) -> Option<Extended> {
        if numerator.is_zero() {
            return Some(Extended::ZERO);
        }
        let mut top = numerator.bits() as i64 - denominator.bits() as i64;
        numerator.shift_left((-top).max(0) as usize);
        denominator.shift_left(top.max(0) as usize);
        if numerator.order(&denominator) == Ordering::Less {
            numerator.shift_left(1);
            top -= 1;
        }
        // Now the quotient is at least one, but not two. Long division gives a bit a round.
        let mut mantissa = 0u64;
        for _ in 0..u64::BITS {
            mantissa <<= 1;
            if numerator.order(&denominator) != Ordering::Less {
                numerator.subtract(&denominator);
                mantissa |= 1;
            }
            numerator.shift_left(1);
        }
        let top = exponent + top;
        if top < EXPONENT_MIN {
            return None;
        }
        let exponent = top - i64::from(u64::BITS - 1);
        let rest = numerator.order(&denominator); // of twice what is left: against a half
        Extended::rounded(mantissa, exponent, rest)
    }

    /// Rounds to even: `rest` is how what lies below the mantissa compares to half its last bit.
    /// `None` if the number exceeds the format.
    fn rounded(mantissa: u64, exponent: i64, rest: Ordering) -> Option<Extended> {
        let up = rest == Ordering::Greater || (rest == Ordering::Equal && mantissa & 1 == 1);
        let (mantissa, exponent) = match mantissa.checked_add(u64::from(up)) {
            Some(mantissa) => (mantissa, exponent),
            None => (1 << (u64::BITS - 1), exponent + 1),
        };
        assert!(mantissa >> (u64::BITS - 1) == 1);
        let finite = exponent + i64::from(u64::BITS - 1) <= EXPONENT_MAX;
        finite.then_some(Extended {
            negative: false,
            mantissa,
            exponent,
        })
    }

    fn from_f64(value: f64) -> Extended {
        const FRACTION_BITS: u32 = f64::MANTISSA_DIGITS - 1;
        let biased = (value.to_bits() >> FRACTION_BITS & 0x7ff) as i64;
        let fraction = value.to_bits() & ((1 << FRACTION_BITS) - 1);
        let mantissa = if biased == 0 {
            fraction
        } else {
            fraction | 1 << FRACTION_BITS
        };
        if mantissa == 0 {
            return Extended::ZERO;
        }
        let shift = mantissa.leading_zeros();
        Extended {
            negative: value.is_sign_negative(),
            mantissa: mantissa << shift,
            exponent: biased.max(1) - 1075 - i64::from(shift),
        }
    }

    /// The sum, rounded; `None` if it is infinite.
    fn add(self, other: Extended) -> Option<Extended> {
        if self.mantissa == 0 || other.mantissa == 0 {
            return Some(if self.mantissa == 0 { other } else { self });
        }
        let (high, low) = if self.exponent >= other.exponent {
            (self, other)
        } else {
            (other, self)
        };
        // The mantissas as integers with 63 more bits below. What the lower one loses by being
        // shifted is remembered in its last bit, which is always far below the rounding.
        const BELOW: u32 = u64::BITS - 1;
        let apart = u32::try_from(high.exponent - low.exponent).unwrap_or(u32::MAX);
        let high_bits = u128::from(high.mantissa) << BELOW;
        let low_exact = u128::from(low.mantissa) << BELOW;
        let low_bits = low_exact.checked_shr(apart).unwrap_or(0);
        let lost = low_bits.checked_shl(apart).unwrap_or(0) != low_exact;
        let low_bits = low_bits | u128::from(lost);
        let (sum, negative) = if high.negative == low.negative {
            (high_bits + low_bits, high.negative)
        } else {
            let negative = if high_bits >= low_bits {
                high.negative
            } else {
                low.negative
            };
            (high_bits.abs_diff(low_bits), negative)
        };
        if sum == 0 {
            return Some(Extended::ZERO);
        }
        let left = sum << sum.leading_zeros();
        let exponent = high.exponent - i64::from(BELOW) - i64::from(sum.leading_zeros());
        let rest = (left as u64).cmp(&(1 << (u64::BITS - 1)));
        let exponent = exponent + i64::from(u64::BITS);
        let rounded = Extended::rounded((left >> u64::BITS) as u64, exponent, rest)?;
        Some(Extended {
            negative,
            ..rounded
        })
    }

    fn print(self) -> String {
        let sign = if self.negative && self.mantissa != 0 {
            "-"
        } else {
            ""
        };
        if self.exponent >= 0 {
            let mut whole = Natural::of(self.mantissa);
            whole.shift_left(self.exponent as usize);
            return format!("{sign}{}", whole.print());
        }
        let scaled = u128::from(self.mantissa) * 10u128.pow(DECIMALS);
        let shift = u32::try_from(-self.exponent).unwrap_or(u32::MAX);
        let scaled = shift_right_to_even(scaled, shift);
        let (whole, part) = (scaled / 10u128.pow(DECIMALS), scaled % 10u128.pow(DECIMALS));
        match (whole, part) {
            (0, 0) => "0".to_owned(),
            (_, 0) => format!("{sign}{whole}"),
            _ => {
                let mut text = format!("{sign}{whole}.{part:0width$}", width = DECIMALS as usize);
                text.truncate(text.trim_end_matches('0').len());
                text
            }
        }
    }
}

/// `value / 2^shift`, rounded to even.
fn shift_right_to_even(value: u128, shift: u32) -> u128 {
    assert!(shift > 0 && value.leading_zeros() > 0);
    if shift >= u128::BITS {
        return 0; // less than a half, as the top bit is clear
    }
    let (quotient, half) = (value >> shift, 1 << (shift - 1));
    let rest = value & (half | (half - 1));
    quotient + u128::from(rest > half || (rest == half && quotient & 1 == 1))
}

/// The parts of a number's text in base `BASE`: `digits` times `BASE` to the minus `places`, times
/// the base of the exponent to the `exponent`.
struct Digits<const BASE: u32> {
    digits: Natural,
    /// How many of them, from the first that is not 0.
    count: i64,
    places: i64,
    exponent: i64,
}

impl<const BASE: u32> Digits<BASE> {
    /// `digits ['.' digits] [mark [sign] decimal digits]`, with at least one digit before the mark.
    fn parse(text: &[u8]) -> Option<Digits<BASE>> {
        let mark = if BASE == 16 { b'p' } else { b'e' };
        let end = text
            .iter()
            .position(|byte| byte.to_ascii_lowercase() == mark);
        let (body, exponent) = match end {
            Some(end) => (&text[..end], parse_exponent(&text[end + 1..])?),
            None => (text, 0),
        };
        let mut parsed = Digits {
            digits: Natural::of(0),
            count: 0,
            places: 0,
            exponent,
        };
        let mut point = false;
        for &byte in body {
            if byte == b'.' && !point {
                point = true;
                continue;
            }
            let digit = char::from(byte).to_digit(BASE)?;
            parsed.digits.multiply_add(BASE, digit);
            parsed.count += i64::from(!parsed.digits.is_zero());
            parsed.places += i64::from(point);
        }
        (body.len() > usize::from(point)).then_some(parsed)
    }
}

impl Digits<10> {
    fn decimal(mut self) -> Option<Extended> {
        if self.digits.is_zero() {
            return Some(Extended::ZERO);
        }
        let power = self.exponent - self.places;
        if !(DECIMAL_EXPONENT_MIN..=DECIMAL_EXPONENT_MAX).contains(&(self.count + power)) {
            return None;
        }
        // Ten is two times five, and the two goes into the exponent.
        let mut denominator = Natural::of(1);
        let scaled = if power < 0 {
            &mut denominator
        } else {
            &mut self.digits
        };
        scaled.multiply_by_power_of_five(power.unsigned_abs());
        Extended::nearest(self.digits, denominator, power)
    }
}

impl Digits<16> {
    fn hexadecimal(self) -> Option<Extended> {
        Extended::nearest(self.digits, Natural::of(1), self.exponent - 4 * self.places)
    }
}

/// An exponent's sign and digits. One that is too large for anything stays that.
fn parse_exponent(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let mut exponent = 0i64;
    for byte in digits {
        let digit = byte.is_ascii_digit().then(|| i64::from(byte - b'0'))?;
        exponent = (exponent * 10 + digit).min(1_000_000);
    }
    let signed = if negative { -exponent } else { exponent };
    (!digits.is_empty()).then_some(signed)
}

/// A natural number of any size: 32 bits a limb, the lowest first, the last not 0.
struct Natural(Vec<u32>);

impl Natural {
    fn of(value: u64) -> Natural {
        let mut natural = Natural(vec![value as u32, (value >> 32) as u32]);
        natural.trim();
        natural
    }

    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    /// The place of the highest bit, counted from 1.
    fn bits(&self) -> usize {
        let unused = self
            .0
            .last()
            .map_or(0, |limb| limb.leading_zeros() as usize);
        self.0.len() * 32 - unused
    }

    fn order(&self, other: &Natural) -> Ordering {
        let by_length = self.0.len().cmp(&other.0.len());
        by_length.then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }

    fn multiply_add(&mut self, factor: u32, summand: u32) {
        let mut carry = u64::from(summand);
        for limb in &mut self.0 {
            let product = u64::from(*limb) * u64::from(factor) + carry;
            *limb = product as u32;
            carry = product >> 32;
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }

    fn multiply_by_power_of_five(&mut self, mut power: u64) {
        const STEP: u32 = 13; // 5^13 is the greatest power of five in a limb
        while power > 0 {
            let step = power.min(u64::from(STEP));
            self.multiply_add(5u32.pow(step as u32), 0);
            power -= step;
        }
    }

    fn shift_left(&mut self, bits: usize) {
        if self.is_zero() || bits == 0 {
            return;
        }
        self.multiply_add(1 << (bits % 32), 0);
        self.0.splice(0..0, std::iter::repeat_n(0, bits / 32));
    }

    /// Takes away `other`, which is not greater.
    fn subtract(&mut self, other: &Natural) {
        let mut borrow = false;
        for (i, limb) in self.0.iter_mut().enumerate() {
            let (less, under) = limb.overflowing_sub(other.0.get(i).copied().unwrap_or(0));
            let (less, under_again) = less.overflowing_sub(u32::from(borrow));
            *limb = less;
            borrow = under || under_again;
        }
        assert!(!borrow, "subtracted a greater number");
        self.trim();
    }

    /// Divides by `divisor`; returns what is left over.
    fn divide(&mut self, divisor: u32) -> u32 {
        let mut rest = 0;
        for limb in self.0.iter_mut().rev() {
            let value = rest << 32 | u64::from(*limb);
            *limb = (value / u64::from(divisor)) as u32;
            rest = value % u64::from(divisor);
        }
        self.trim();
        rest as u32
    }

    fn print(mut self) -> String {
        let mut groups = Vec::new(); // of nine digits, the lowest first
        while !self.is_zero() {
            groups.push(self.divide(1_000_000_000));
        }
        let mut text = groups.pop().unwrap_or(0).to_string();
        for group in groups.iter().rev() {
            text += &format!("{group:09}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_have_one_form() {
        // Redis takes a value for an integer only if printing that integer gives the value back.
        for text in [
            "0",
            "7",
            "-1",
            "10",
            "9223372036854775807",
            "-9223372036854775808",
        ] {
            let value: i64 = text.parse().expect("an integer");
            assert_eq!(parse_i64(text.as_bytes()), Some(value));
        }
        let refused = [
            "", "-", "-0", "+1", "01", "-01", " 1", "1 ", "1.0", "1e3", "0x1", "--1", "1\0",
        ];
        for text in refused {
            assert_eq!(parse_i64(text.as_bytes()), None, "{text:?}");
            assert_eq!(parse_u64(text.as_bytes()), None, "{text:?}");
        }
        for beyond in [
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999999",
        ] {
            assert_eq!(parse_i64(beyond.as_bytes()), None, "{beyond} must not wrap");
        }
        assert_eq!(parse_u64(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(parse_u64(b"18446744073709551616"), None);
        assert_eq!(parse_u64(b"-1"), None);
    }

    #[test]
    fn every_printed_integer_is_read_back() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..10_000 {
            let value = random.i64(..) >> random.u32(0..64);
            assert_eq!(parse_i64(value.to_string().as_bytes()), Some(value));
            assert_eq!(
                parse_u64(value.to_string().as_bytes()),
                u64::try_from(value).ok()
            );
        }
    }

    /// What `INCRBYFLOAT` of Redis 7.0.15 on x86-64 answered to `SET k current` and `increment`.
    #[test]
    fn sums_are_those_of_redis() {
        let cases = [
            ("0.1", "0.2", "0.3"),
            ("10.50", "0.1", "10.6"),
            ("5.0e3", "2.0e2", "5200"),
            ("3", "-3.0", "0"),
            ("-0", "-0", "0"),
            ("-1e-30", "0", "0"),
            ("-0.000000000000000004", "0", "0"),
            ("3000.1", "0.2", "3000.30000000000000004"),
            ("1000.1", "0", "1000.09999999999999998"),
            ("+5", "1", "6"),
            (".5", "5.", "5.5"),
            ("0x10", "1", "17"),
            ("0x1.8p3", "0x.8", "12.5"),
            ("1e20", "1", "100000000000000000000"),
            ("18446744073709551615", "1", "18446744073709551616"),
            ("18446744073709551616.5", "0", "18446744073709551616"),
            ("1e30", "0", "1000000000000000000024696061952"),
            ("1e-4940", "0", "0"),
            ("2e-4951", "0", "0"),
            // Halves go to the even neighbour: of 64 bits, and of 17 decimals.
            ("18446744073709551617", "0", "18446744073709551616"),
            ("18446744073709551619", "0", "18446744073709551620"),
            ("0.000003814697265625", "0", "0.00000381469726562"),
            ("0.000011444091796875", "0", "0.00001144409179688"),
            // Just above a half: the increment's last bit decides, far below the sum's.
            (
                "18446744073709551616",
                "1.0000000000000000001084202",
                "18446744073709551618",
            ),
        ];
        for (current, increment, sum) in cases {
            let ours = add_float(current.as_bytes(), increment.as_bytes());
            assert_eq!(ours.as_deref(), Ok(sum), "{current} + {increment}");
            let swapped = add_float(increment.as_bytes(), current.as_bytes());
            assert_eq!(swapped, ours, "{increment} + {current}");
        }
        let large = add_float(b"1e4932", b"0").expect("fits");
        assert!(large.starts_with("1000000000000000000006018949387963891323837774254533114773785"));
        assert_eq!(large.len(), 4933);
    }

    #[test]
    fn what_is_no_number_is_told_from_what_has_no_sum() {
        let refused = [
            "",
            " 1",
            "1 ",
            "abc",
            "1e",
            "1e+",
            "e5",
            ".",
            "0x",
            "0x.",
            "0x1p",
            "+-1",
            "1..2",
            "1_0",
            "nan",
            "-nan",
            "infinit",
            "1e5000",
            "1e-5000",
            "1e-4951",
            "1e99999999999999999999",
            "1\0",
            "1,5",
        ];
        for text in refused {
            assert_eq!(
                add_float(text.as_bytes(), b"1"),
                Err(FloatError::NotFloat),
                "{text:?}"
            );
            assert_eq!(
                add_float(b"1", text.as_bytes()),
                Err(FloatError::NotFloat),
                "{text:?}"
            );
        }
        for text in ["inf", "-INF", "+Infinity"] {
            assert_eq!(
                add_float(text.as_bytes(), b"1"),
                Err(FloatError::NotFinite),
                "{text:?}"
            );
        }
        assert_eq!(add_float(b"1e4932", b"1e4932"), Err(FloatError::NotFinite));
        let too_long = vec![b'1'; FLOAT_BYTES_MAX + 1];
        assert_eq!(add_float(&too_long, b"0"), Err(FloatError::NotFloat));
        assert!(
            add_float(&[&b"0."[..], &too_long[3..]].concat(), b"0").is_ok(),
            "just short enough"
        );
    }

    #[test]
    fn sums_of_what_80_bits_hold_are_exact() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..5_000 {
            let (a, b) = (
                random.i64(..) >> random.u32(1..64),
                random.i64(..) >> random.u32(1..64),
            );
            let sum = add_float(a.to_string().as_bytes(), b.to_string().as_bytes());
            assert_eq!(sum, Ok((a + b).to_string()));
            // Sixteenths are exact in binary, and their four decimals are all printed.
            let (a, b) = (a >> 8, b >> 8);
            let sixteenths = |n: i64| format_float_for_incr((n % (1 << 48)) as f64 / 16.0);
            let sum = (a % (1 << 48)) + (b % (1 << 48));
            let ours = add_float(sixteenths(a).as_bytes(), sixteenths(b).as_bytes());
            assert_eq!(ours, Ok(format_float_for_incr(sum as f64 / 16.0)));
        }
    }

    #[test]
    fn doubles_are_printed_with_17_decimals_less_zeros() {
        let cases = [
            (10.5, "10.5"),
            (3.0e3, "3000"),
            (-0.0, "0"),
            (0.0, "0"),
            (-2.25, "-2.25"),
            (0.1, "0.10000000000000001"),
            (1e22, "10000000000000000000000"),
            (5e-324, "0"),
            (100.0, "100"),
        ];
        for (value, text) in cases {
            assert_eq!(format_float_for_incr(value), text);
        }
        let largest = format_float_for_incr(f64::MAX);
        assert_eq!(largest.parse(), Ok(f64::MAX));
        assert_eq!(largest.len(), 309);
    }

    #[test]
    fn doubles_are_read_strictly() {
        for (text, value) in [
            ("1.5", 1.5),
            ("-3e2", -300.0),
            (".5", 0.5),
            ("inf", f64::INFINITY),
        ] {
            assert_eq!(parse_float(text.as_bytes()), Some(value));
        }
        for text in [
            "", " 1", "1 ", "nan", "1e400", "-1e400", "abc", "1e", "\u{661}",
        ] {
            assert_eq!(parse_float(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn junk_is_never_more_than_refused() {
        const LETTERS: &[u8] = b"0123456789.-+eExXpinf \xff";
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..50_000 {
            let mut text = || -> Vec<u8> {
                let length = random.usize(0..12);
                (0..length)
                    .map(|_| LETTERS[random.usize(0..LETTERS.len())])
                    .collect()
            };
            let (current, increment) = (text(), text());
            if let Ok(sum) = add_float(&current, &increment) {
                let again = add_float(sum.as_bytes(), b"0");
                assert!(again.is_ok(), "a stored sum is a number: {sum}");
            }
        }
    }
}
