//! From an object to bytes, up to a limit, and back.

use std::any::type_name;

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Bytes;

/// The bytes of an object.
///
/// # Errors
/// Why there are none, in words that follow the object's owner: serde refuses it, it is larger than `most`, or there is no
/// memory for it.
pub(crate) fn encode<T: Serialize>(object: &T, most: Bytes) -> Result<Vec<u8>, String> {
    let counted = Counted { bytes: Vec::new(), len: 0, most: most.0 as u64, full: false };
    let counted = match postcard::serialize_with_flavor(object, counted) {
        Ok(counted) => counted,
        Err(error) => {
            let name = type_name::<T>();
            return Err(format!(
                "its object of type {name} cannot be serialised: {error}; see what its Serialize does for postcard, a format \
                 that knows lengths beforehand"
            ));
        }
    };
    let Counted { bytes, len, full, .. } = counted;
    if len > most.0 as u64 {
        return Err(format!(
            "its object has {len} bytes, more than KOLO_OBJECT_BYTES ({most}) allows; set that higher on every rank, or \
             pass less"
        ));
    }
    if full {
        return Err(format!("there is no memory for the {len} bytes of its object; pass less"));
    }
    Ok(bytes)
}

/// The object that these bytes, and no fewer of them, are.
///
/// # Errors
/// What is wrong with them.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let name = type_name::<T>();
    match postcard::take_from_bytes(bytes) {
        Ok((object, [])) => Ok(object),
        Ok((_, rest)) => Err(format!(
            "{} of its {} bytes are left over after a {name}; Serialize and Deserialize must agree",
            rest.len(),
            bytes.len()
        )),
        Err(error) => Err(format!(
            "its {} bytes are no {name}: {error}; Serialize and Deserialize must agree, for postcard, a format that does not \
             describe itself",
            bytes.len()
        )),
    }
}

/// Keeps bytes up to a limit, and counts those beyond, so that an error can say how many there are.
struct Counted {
    bytes: Vec<u8>,
    len: u64,
    most: u64,
    /// There was no memory for them.
    full: bool,
}

impl Flavor for Counted {
    type Output = Self;

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.len += data.len() as u64;
        if self.len > self.most || self.full || self.bytes.try_reserve(data.len()).is_err() {
            self.full = true;
            self.bytes = Vec::new();
        } else {
            self.bytes.extend_from_slice(data);
        }
        Ok(())
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.try_extend(&[data])
    }

    fn finalize(self) -> postcard::Result<Self> {
        Ok(self)
    }
}

#[cfg(all(test, not(kolo_loom)))]
mod tests {
    use std::collections::BTreeMap;

    use serde::ser::{Error as _, Serializer};

    use super::*;
    use crate::os::counting::peak;

    const MUCH: Bytes = Bytes::mib(1);

    #[test]
    fn what_was_written_is_read() {
        let object = (7_u8, Some("seven".to_owned()), vec![1.5_f64, f64::INFINITY], BTreeMap::from([(1_i64, ())]));
        let bytes = encode(&object, MUCH).expect("small");
        assert_eq!(decode(&bytes), Ok(object));
        assert_eq!(encode(&(), MUCH), Ok(Vec::new()));
        assert_eq!(decode(&[]), Ok(()));
    }

    #[test]
    fn an_object_that_is_too_large_is_counted_and_not_kept() {
        let (refused, most) = peak(|| encode(&vec![7_u8; 100_000], Bytes(1000)));
        let text = refused.expect_err("too large");
        assert!(text.contains("has 100003 bytes") && text.contains("KOLO_OBJECT_BYTES (1000)"), "{text}");
        // The object itself, and little more than the limit.
        assert!(most < 110_000, "{most}");
        let exact = encode(&vec![7_u8; 998], Bytes(1000)).expect("just small enough");
        assert_eq!(exact.len(), 1000);
        assert!(encode(&vec![7_u8; 999], Bytes(1000)).is_err());
    }

    #[test]
    fn an_object_that_refuses_says_of_which_type_it_is() {
        struct Stubborn;
        impl Serialize for Stubborn {
            fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(S::Error::custom("no"))
            }
        }
        let text = encode(&Stubborn, MUCH).expect_err("refused");
        assert!(text.contains("Stubborn cannot be serialised"), "{text}");
    }

    #[test]
    fn other_bytes_are_no_object() {
        let bytes = encode(&(1_u8, "text"), MUCH).expect("small");
        let text = decode::<(u8, String, u8)>(&bytes).expect_err("too short");
        assert!(text.contains("are no (u8, alloc::string::String, u8)"), "{text}");
        let text = decode::<u8>(&bytes).expect_err("too long");
        assert!(text.contains("5 of its 6 bytes are left over after a u8"), "{text}");
        assert!(decode::<bool>(&[2]).is_err());
    }
}
