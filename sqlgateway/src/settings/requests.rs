//! What `set_config()` asks for while a statement runs: carried out by the session
//! when the statement has succeeded, since functions cannot reach it.

use parking_lot::Mutex;

/// One call of `set_config()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetRequest {
    /// The setting.
    pub name: String,
    /// Its new value; `None`: the default.
    pub value: Option<String>,
    /// Until the end of the transaction.
    pub local: bool,
}

/// The calls of the statement that runs.
#[derive(Debug, Default)]
pub struct SetRequests(Mutex<Vec<SetRequest>>);

impl SetRequests {
    /// Notes a call.
    pub fn push(&self, request: SetRequest) {
        self.0.lock().push(request);
    }

    /// Takes them all.
    pub fn take(&self) -> Vec<SetRequest> {
        std::mem::take(&mut self.0.lock())
    }
}
