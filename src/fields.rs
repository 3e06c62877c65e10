//! Byte strings one after another, each behind its length: what ranks tell each other while a job is set up.

/// Appends a field.
pub(crate) fn put(out: &mut Vec<u8>, field: &[u8]) {
    // Fields are names, masks and tokens; a field of 4 GiB would be a mistake elsewhere.
    let length = u32::try_from(field.len()).expect("a field of less than 4 GiB");
    out.extend(length.to_le_bytes());
    out.extend(field);
}

/// Takes the first field off `rest`. `None`: there is none, or the bytes are no fields.
pub(crate) fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, tail) = rest.split_first_chunk::<4>()?;
    let (field, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = tail;
    Some(field)
}

/// Takes a field of text.
pub(crate) fn take_text(rest: &mut &[u8]) -> Option<String> {
    String::from_utf8(take(rest)?.to_vec()).ok()
}

/// Takes a field of exactly `N` bytes.
pub(crate) fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    take(rest)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_order_and_nothing_else_does() {
        let mut out = Vec::new();
        put(&mut out, b"");
        put(&mut out, "ä".as_bytes());
        put(&mut out, &7_u32.to_le_bytes());
        let mut rest = &out[..];
        assert_eq!(take(&mut rest), Some(&b""[..]));
        assert_eq!(take_text(&mut rest).as_deref(), Some("ä"));
        assert_eq!(take_array::<4>(&mut rest), Some([7, 0, 0, 0]));
        assert_eq!((take(&mut rest), rest.len()), (None, 0));
        assert_eq!(take(&mut &out[..3]), None);
        assert_eq!(take(&mut &[9, 0, 0, 0, 1][..]), None);
        assert_eq!(take_text(&mut &[1, 0, 0, 0, 0xff][..]), None);
    }
}
