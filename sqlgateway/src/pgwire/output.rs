//! What the server says: backend messages gathered in one buffer and written
//! in few system calls.

use crate::encode::Format;
use crate::error::SqlError;
use crate::session::{ResultColumn, TransactionStatus};
use ::pgwire::messages::PgWireBackendMessage as Message;
use ::pgwire::messages::copy::{CopyDone, CopyInResponse, CopyOutResponse};
use ::pgwire::messages::data::{FieldDescription, NoData, ParameterDescription, RowDescription};
use ::pgwire::messages::extendedquery::{
    BindComplete, CloseComplete, ParseComplete, PortalSuspended,
};
use ::pgwire::messages::response::{
    CommandComplete, EmptyQueryResponse, ErrorResponse, NoticeResponse, ReadyForQuery,
    TransactionStatus as Status,
};
use ::pgwire::messages::startup::{
    Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey,
};
use bytes::{BufMut, BytesMut};
use lineradb_common::sql::SqlType;

/// Above this many bytes the buffer is written before more is produced.
pub const FLUSH_AT: usize = 32 << 10;

/// Backend messages that are not sent yet.
#[derive(Default)]
pub struct Output {
    /// The bytes; rows are appended here directly.
    pub buffer: BytesMut,
}

impl Output {
    fn put(&mut self, message: Message) {
        // Encoding fails only for a message beyond the protocol's length limit,
        // which leaves a broken frame: end it as what it is.
        if let Err(error) = message.encode(&mut self.buffer) {
            tracing::error!(%error, "a backend message could not be encoded");
        }
    }

    /// AuthenticationOk.
    pub fn authenticated(&mut self) {
        self.put(Message::Authentication(Authentication::Ok));
    }

    /// NegotiateProtocolVersion: we speak 3.0, without protocol options.
    pub fn negotiate(&mut self, unsupported: Vec<String>) {
        self.put(Message::NegotiateProtocolVersion(
            NegotiateProtocolVersion::new(3 << 16, unsupported),
        ));
    }

    /// ParameterStatus.
    pub fn parameter(&mut self, name: &str, value: String) {
        self.put(Message::ParameterStatus(ParameterStatus::new(
            name.to_owned(),
            value,
        )));
    }

    /// BackendKeyData.
    pub fn backend_key(&mut self, (pid, secret): (i32, i32)) {
        self.put(Message::BackendKeyData(BackendKeyData::new(
            pid,
            SecretKey::I32(secret),
        )));
    }

    /// ReadyForQuery.
    pub fn ready(&mut self, status: TransactionStatus) {
        let status = match status {
            TransactionStatus::Idle => Status::Idle,
            TransactionStatus::InTransaction => Status::Transaction,
            TransactionStatus::Failed => Status::Error,
        };
        self.put(Message::ReadyForQuery(ReadyForQuery::new(status)));
    }

    /// ErrorResponse.
    pub fn error(&mut self, severity: &str, error: &SqlError) {
        self.put(Message::ErrorResponse(ErrorResponse::new(fields(
            severity, error,
        ))));
    }

    /// NoticeResponse; class 01 are warnings.
    pub fn notice(&mut self, notice: &SqlError) {
        let severity = if notice.sqlstate.starts_with("01") {
            "WARNING"
        } else {
            "NOTICE"
        };
        self.put(Message::NoticeResponse(NoticeResponse::new(fields(
            severity, notice,
        ))));
    }

    /// CommandComplete.
    pub fn complete(&mut self, tag: String) {
        self.put(Message::CommandComplete(CommandComplete::new(tag)));
    }

    /// EmptyQueryResponse.
    pub fn empty_query(&mut self) {
        self.put(Message::EmptyQueryResponse(EmptyQueryResponse::new()));
    }

    /// ParseComplete.
    pub fn parsed(&mut self) {
        self.put(Message::ParseComplete(ParseComplete::new()));
    }

    /// BindComplete.
    pub fn bound(&mut self) {
        self.put(Message::BindComplete(BindComplete::new()));
    }

    /// CloseComplete.
    pub fn closed(&mut self) {
        self.put(Message::CloseComplete(CloseComplete::new()));
    }

    /// PortalSuspended.
    pub fn suspended(&mut self) {
        self.put(Message::PortalSuspended(PortalSuspended::new()));
    }

    /// NoData.
    pub fn no_data(&mut self) {
        self.put(Message::NoData(NoData::new()));
    }

    /// ParameterDescription.
    pub fn parameters(&mut self, types: &[SqlType]) {
        let oids = types.iter().map(|sql_type| wire_oid(*sql_type)).collect();
        self.put(Message::ParameterDescription(ParameterDescription::new(
            oids,
        )));
    }

    /// RowDescription.
    pub fn columns(&mut self, columns: &[ResultColumn], formats: &[Format]) {
        let fields = columns
            .iter()
            .zip(formats)
            .map(|(column, format)| {
                FieldDescription::new(
                    column.name.clone(),
                    column.table_oid as i32,
                    column.column_number,
                    wire_oid(column.sql_type),
                    column.sql_type.type_length(),
                    column.sql_type.type_modifier(),
                    format.code(),
                )
            })
            .collect();
        self.put(Message::RowDescription(RowDescription::new(fields)));
    }

    /// CopyInResponse: text, `columns` columns.
    pub fn copy_in(&mut self, columns: usize) {
        self.put(Message::CopyInResponse(CopyInResponse::new(
            0,
            columns as i16,
            vec![0; columns],
        )));
    }

    /// CopyOutResponse: text, `columns` columns.
    pub fn copy_out(&mut self, columns: usize) {
        self.put(Message::CopyOutResponse(CopyOutResponse::new(
            0,
            columns as i16,
            vec![0; columns],
        )));
    }

    /// CopyData.
    pub fn copy_data(&mut self, data: &[u8]) {
        self.buffer.put_u8(b'd');
        self.buffer.put_i32(data.len() as i32 + 4);
        self.buffer.put_slice(data);
    }

    /// CopyDone.
    pub fn copy_done(&mut self) {
        self.put(Message::CopyDone(CopyDone::new()));
    }
}

/// `unknown` is reported as text, as PostgreSQL resolves it in results.
fn wire_oid(sql_type: SqlType) -> u32 {
    match sql_type {
        SqlType::Unknown => SqlType::Text.oid(),
        other => other.oid(),
    }
}

fn fields(severity: &str, error: &SqlError) -> Vec<(u8, String)> {
    let mut fields = vec![
        (b'S', severity.to_owned()),
        (b'V', severity.to_owned()),
        (b'C', error.sqlstate.clone()),
        (b'M', error.message.clone()),
    ];
    let optional = [
        (b'D', error.detail.clone()),
        (b'H', error.hint.as_deref().map(str::to_owned)),
        (b'P', error.position.map(|position| position.to_string())),
    ];
    fields.extend(
        optional
            .into_iter()
            .filter_map(|(code, text)| text.map(|text| (code, text))),
    );
    // A NUL would end the field early.
    for (_, text) in &mut fields {
        if text.contains('\0') {
            *text = text.replace('\0', "");
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_carry_position_and_hint() {
        let error = SqlError::new("42601", "no\0").with_hint("try").at(Some(7));
        let fields = fields("ERROR", &error);
        assert!(fields.contains(&(b'P', "7".into())));
        assert!(fields.contains(&(b'H', "try".into())));
        assert!(fields.contains(&(b'M', "no".into())));
    }

    #[test]
    fn copy_data_is_one_frame() {
        let mut output = Output::default();
        output.copy_data(b"1\n");
        assert_eq!(&output.buffer[..], b"d\0\0\0\x061\n");
    }
}
