//! Conversions between 16-bit floats and f32, without branches so that loops over them become vector code.
//!
//! They agree bit for bit with the processor's own (F16C) and with the crate `half`: round to nearest even, subnormals
//! kept, NaN made quiet with the upper payload bits kept.

/// f16 bits to f32: exact.
#[inline(always)]
pub(super) fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let rest = u32::from(half & 0x7fff);
    // Normal: move the fraction up and the exponent's bias from 15 to 127.
    let normal = (rest << 13) + ((127 - 15) << 23);
    // Subnormal: a multiple of 2^-24, which is normal in f32.
    let subnormal = (rest as i32 as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
    let infinite = (rest << 13) | 0x7f80_0000;
    let quiet = infinite | 0x0040_0000;
    let special = if rest > 0x7c00 { quiet } else { infinite };
    let finite = if rest < 0x0400 { subnormal } else { normal };
    f32::from_bits(sign | if rest >= 0x7c00 { special } else { finite })
}

/// f32 to f16 bits, rounded to nearest even.
#[inline(always)]
pub(super) fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let rest = bits & 0x7fff_ffff;
    // Normal: add just under half a unit, and the odd bit so that ties go to even; a carry raises the exponent.
    let rounded = rest.wrapping_add(0x0fff).wrapping_add((rest >> 13) & 1) >> 13;
    let normal = rounded.wrapping_sub((127 - 15) << 10).min(0x7c00);
    // Subnormal: one unit in the last place of 0.5 is 2^-24, f16's smallest step, so that the adder rounds for us.
    let subnormal = (f32::from_bits(rest) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let quiet = 0x7e00 | ((rest >> 13) & 0x03ff);
    let finite = if rest < 0x3880_0000 { subnormal } else { normal };
    (sign | if value.is_nan() { quiet } else { finite }) as u16
}

/// bf16 bits to f32: exact.
#[inline(always)]
pub(super) fn bf16_to_f32(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// f32 to bf16 bits, rounded to nearest even.
#[inline(always)]
pub(super) fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff).wrapping_add((bits >> 16) & 1) >> 16;
    let quiet = (bits >> 16) | 0x0040;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_converts_like_the_half_crate() {
        for bits in 0..=u16::MAX {
            assert_eq!(f16_to_f32(bits).to_bits(), half::f16::from_bits(bits).to_f32().to_bits(), "f16 {bits:#x}");
            let wide = half::bf16::from_bits(bits).to_f32();
            assert!(wide.is_nan() || bf16_to_f32(bits).to_bits() == wide.to_bits(), "bf16 {bits:#x}");
            assert_eq!(bf16_to_f32(bits).is_nan(), wide.is_nan());
        }
    }

    /// Around every 16-bit value and every midpoint between two: where rounding decides.
    #[test]
    fn rounding_is_that_of_the_half_crate_around_every_midpoint() {
        for bits in 0..=u16::MAX {
            let near = [half::f16::from_bits(bits).to_f32_const().to_bits(), u32::from(bits) << 16];
            for base in near {
                for offset in [0, 1, 2, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff] {
                    for bits in [base.wrapping_add(offset), base.wrapping_sub(offset)] {
                        let value = f32::from_bits(bits);
                        assert_eq!(f32_to_f16(value), half::f16::from_f32_const(value).to_bits(), "f16 of {bits:#x}");
                        assert_eq!(f32_to_bf16(value), half::bf16::from_f32_const(value).to_bits(), "bf16 {bits:#x}");
                    }
                }
            }
        }
    }
}
