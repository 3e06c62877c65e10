//! What panics said. The hook only records: a panic may be caught and harm nothing.

use std::any::Any;
use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    /// The last panic of this thread, with its place.
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Makes panics leave their words, once a process. Whatever hook was there runs as before.
pub(crate) fn record_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|place| format!(" at {}:{}", place.file(), place.line()));
            let text = format!("panicked{}: {}", place.unwrap_or_default(), words(info.payload()));
            // A thread that is being taken down has no such storage any more; then its words are lost.
            let _ = LAST.try_with(|last| last.replace(Some(text)));
            before(info);
        }));
    });
}

/// The words of this thread's last panic, or those of `payload` if the hook did not see it.
pub(crate) fn panic_text(payload: Option<&(dyn Any + Send)>) -> String {
    let recorded = LAST.try_with(|last| last.borrow_mut().take()).ok().flatten();
    recorded.unwrap_or_else(|| payload.map_or_else(|| "panicked".to_owned(), |p| format!("panicked: {}", words(p))))
}

fn words(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(a panic without words)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_place_are_kept_for_the_thread_that_panicked() {
        record_panics();
        std::thread::spawn(|| {
            let payload = panic::catch_unwind(|| panic!("out of {}", "cheese")).expect_err("it panics");
            let text = panic_text(Some(&*payload));
            assert!(text.starts_with("panicked at ") && text.ends_with(": out of cheese"), "{text}");
            assert!(text.contains("last_words.rs:"), "{text}");
            assert_eq!(panic_text(Some(&*payload)), "panicked: out of cheese", "taken once");
            assert_eq!(panic_text(None), "panicked");
            assert_eq!(panic_text(Some(&7_u8)), "panicked: (a panic without words)");
        })
        .join()
        .expect("the assertions hold");
    }
}
