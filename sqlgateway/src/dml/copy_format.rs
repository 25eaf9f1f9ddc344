//! The text and CSV formats of COPY, read piece by piece and written row by row.

use crate::error::{Result, SqlError};
use crate::statement::CopyOptions;

/// A row of fields; `None`: NULL.
pub type Fields = Vec<Option<String>>;

/// How rows look.
#[derive(Clone, Debug)]
pub struct Format {
    csv: bool,
    delimiter: u8,
    null: String,
    quote: u8,
    escape: u8,
}

impl Format {
    /// From the options of COPY.
    ///
    /// # Errors
    /// 0A000 and 22023 for options that contradict each other.
    pub fn new(options: &CopyOptions) -> Result<Self> {
        let byte = |c: Option<char>, default: u8| c.map_or(default, |c| c as u8);
        let quote = byte(options.quote, b'"');
        let format = Format {
            csv: options.csv,
            delimiter: byte(options.delimiter, if options.csv { b',' } else { b'\t' }),
            null: options.null.clone().unwrap_or_else(|| {
                if options.csv {
                    String::new()
                } else {
                    "\\N".into()
                }
            }),
            quote,
            escape: byte(options.escape, quote),
        };
        if matches!(format.delimiter, b'\n' | b'\r')
            || (!format.csv
                && (format.delimiter.is_ascii_alphanumeric()
                    || matches!(format.delimiter, b'\\' | b'.')))
            || (format.csv && format.delimiter == quote)
        {
            return Err(SqlError::new(
                "22023",
                format!("COPY delimiter cannot be \"{}\"", format.delimiter as char),
            ));
        }
        if format.null.contains(['\n', '\r']) {
            return Err(SqlError::new(
                "22023",
                "COPY null representation cannot use newline or carriage return",
            ));
        }
        Ok(format)
    }

    /// Appends a row.
    pub fn write_row(&self, fields: &[Option<&str>], force_quote: &[bool], out: &mut Vec<u8>) {
        for (i, field) in fields.iter().enumerate() {
            if i > 0 {
                out.push(self.delimiter);
            }
            match field {
                None => out.extend_from_slice(self.null.as_bytes()),
                Some(text) if self.csv => {
                    let force = force_quote.get(i).copied().unwrap_or(false);
                    self.write_csv(text, force, fields.len() == 1, out);
                }
                Some(text) => self.write_text(text, out),
            }
        }
        out.push(b'\n');
    }

    fn write_text(&self, text: &str, out: &mut Vec<u8>) {
        for &b in text.as_bytes() {
            let escaped = match b {
                b'\\' => b'\\',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                0x08 => b'b',
                0x0c => b'f',
                0x0b => b'v',
                b if b == self.delimiter => b,
                b => {
                    out.push(b);
                    continue;
                }
            };
            out.push(b'\\');
            out.push(escaped);
        }
    }

    fn write_csv(&self, text: &str, force: bool, single: bool, out: &mut Vec<u8>) {
        let special = |b: u8| b == self.delimiter || b == self.quote || b == b'\n' || b == b'\r';
        let quote =
            force || text == self.null || text.bytes().any(special) || (single && text == "\\.");
        if !quote {
            out.extend_from_slice(text.as_bytes());
            return;
        }
        out.push(self.quote);
        for &b in text.as_bytes() {
            if b == self.quote || b == self.escape {
                out.push(self.escape);
            }
            out.push(b);
        }
        out.push(self.quote);
    }
}

/// Reads rows from pieces of data.
#[derive(Debug)]
pub struct Reader {
    format: Format,
    /// What has come but is no whole row yet.
    pending: Vec<u8>,
    /// How far `pending` was looked at, and whether that is inside quotes.
    looked: usize,
    in_quotes: bool,
    /// The end-of-data mark was seen.
    ended: bool,
    /// Rows and header lines read.
    pub line: u64,
}

/// Longest row.
const ROW_BYTES_MAX: usize = 64 << 20;

impl Reader {
    /// For a format.
    pub fn new(format: Format) -> Self {
        Reader {
            format,
            pending: Vec::new(),
            looked: 0,
            in_quotes: false,
            ended: false,
            line: 0,
        }
    }

    /// Takes a piece of data; appends the rows that are complete.
    ///
    /// # Errors
    /// 22P04 and 22021 for data that are no rows.
    pub fn push(&mut self, data: &[u8], rows: &mut Vec<Fields>) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        self.pending.extend_from_slice(data);
        let mut start = 0;
        while let Some(end) = self.row_end() {
            let line = trim_cr(&self.pending[start..end]);
            self.line += 1;
            if line == b"\\." {
                self.ended = true;
                self.pending.clear();
                return Ok(());
            }
            rows.push(self.format.parse(line)?);
            start = end + 1;
        }
        self.pending.drain(..start);
        self.looked -= start;
        if self.pending.len() > ROW_BYTES_MAX {
            return Err(bad("a row is longer than 64 MiB"));
        }
        Ok(())
    }

    /// The data are complete: the last row may lack its line end.
    ///
    /// # Errors
    /// As [`Reader::push`].
    pub fn finish(&mut self, rows: &mut Vec<Fields>) -> Result<()> {
        if self.in_quotes {
            return Err(bad("unterminated CSV quoted field"));
        }
        let last = std::mem::take(&mut self.pending);
        let line = trim_cr(&last);
        if self.ended || last.is_empty() || line == b"\\." {
            return Ok(());
        }
        self.line += 1;
        rows.push(self.format.parse(line)?);
        Ok(())
    }

    /// Where the next line end that ends a row is.
    fn row_end(&mut self) -> Option<usize> {
        let f = &self.format;
        while self.looked < self.pending.len() {
            let b = self.pending[self.looked];
            if f.csv {
                if self.in_quotes && f.escape != f.quote && b == f.escape {
                    // The character after it does not count.
                    if self.looked + 1 >= self.pending.len() {
                        return None;
                    }
                    self.looked += 2;
                    continue;
                }
                if b == f.quote {
                    self.in_quotes = !self.in_quotes;
                }
            } else if b == b'\\' {
                // An escaped line end is data.
                if self.looked + 1 >= self.pending.len() {
                    return None;
                }
                let two = self.pending[self.looked + 1] == b'\n'
                    || self.pending[self.looked + 1] == b'\\';
                self.looked += if two { 2 } else { 1 };
                continue;
            }
            self.looked += 1;
            if b == b'\n' && !self.in_quotes {
                return Some(self.looked - 1);
            }
        }
        None
    }
}

fn trim_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn bad(message: impl Into<String>) -> SqlError {
    SqlError::new("22P04", message)
}

fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes)
        .map_err(|_| SqlError::new("22021", "invalid byte sequence for encoding \"UTF8\""))
}

impl Format {
    fn parse(&self, line: &[u8]) -> Result<Fields> {
        if self.csv {
            self.parse_csv(line)
        } else {
            self.parse_text(line)
        }
    }

    fn parse_text(&self, line: &[u8]) -> Result<Fields> {
        let mut out = Vec::new();
        let mut start = 0;
        let mut i = 0;
        loop {
            let end = i >= line.len();
            if !end && line[i] == b'\\' {
                i += 2;
                continue;
            }
            if end || line[i] == self.delimiter {
                let raw = &line[start..i.min(line.len())];
                out.push(if raw == self.null.as_bytes() {
                    None
                } else {
                    Some(utf8(unescape(raw))?)
                });
                if end {
                    return Ok(out);
                }
                start = i + 1;
            }
            i += 1;
        }
    }

    fn parse_csv(&self, line: &[u8]) -> Result<Fields> {
        let mut out = Vec::new();
        let mut field = Vec::new();
        let mut quoted = false;
        let mut in_quotes = false;
        let mut i = 0;
        loop {
            match line.get(i) {
                Some(&b) if in_quotes => {
                    let next = line.get(i + 1).copied();
                    if b == self.escape && next.is_some_and(|n| n == self.quote || n == self.escape)
                    {
                        field.extend(next);
                        i += 1;
                    } else if b == self.quote {
                        in_quotes = false;
                    } else {
                        field.push(b);
                    }
                }
                Some(&b) if b == self.quote => {
                    quoted = true;
                    in_quotes = true;
                }
                Some(&b) if b != self.delimiter => field.push(b),
                end => {
                    if in_quotes {
                        return Err(bad("unterminated CSV quoted field"));
                    }
                    let bytes = std::mem::take(&mut field);
                    out.push(if !quoted && bytes == self.null.as_bytes() {
                        None
                    } else {
                        Some(utf8(bytes)?)
                    });
                    quoted = false;
                    if end.is_none() {
                        return Ok(out);
                    }
                }
            }
            i += 1;
        }
    }
}

/// Undoes the backslash escapes of the text format.
fn unescape(raw: &[u8]) -> Vec<u8> {
    if !raw.contains(&b'\\') {
        return raw.to_vec();
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut i = 0;
    while i < raw.len() {
        if raw[i] != b'\\' || i + 1 == raw.len() {
            out.push(raw[i]);
            i += 1;
            continue;
        }
        i += 1;
        let c = raw[i];
        i += 1;
        out.push(match c {
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0b,
            b'0'..=b'7' => {
                let mut v = u32::from(c - b'0');
                for _ in 0..2 {
                    match raw.get(i) {
                        Some(d @ b'0'..=b'7') => {
                            v = v * 8 + u32::from(d - b'0');
                            i += 1;
                        }
                        _ => break,
                    }
                }
                v as u8
            }
            b'x' if raw.get(i).is_some_and(u8::is_ascii_hexdigit) => {
                let mut v = 0_u32;
                for _ in 0..2 {
                    match raw.get(i).and_then(|d| (*d as char).to_digit(16)) {
                        Some(d) => {
                            v = v * 16 + d;
                            i += 1;
                        }
                        None => break,
                    }
                }
                v as u8
            }
            other => other,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &CopyOptions, data: &str, piece: usize) -> Result<Vec<Fields>> {
        let mut reader = Reader::new(Format::new(options)?);
        let mut rows = Vec::new();
        for chunk in data.as_bytes().chunks(piece) {
            reader.push(chunk, &mut rows)?;
        }
        reader.finish(&mut rows)?;
        Ok(rows)
    }

    fn some(fields: &[&str]) -> Fields {
        fields
            .iter()
            .map(|f| (*f != "NULL").then(|| (*f).to_owned()))
            .collect()
    }

    #[test]
    fn text_is_read_in_pieces_of_any_size() {
        let data = "1\ta\\tb\\nc\n2\t\\N\r\n3\t\\x41\\101\\\\\n\\.\nignored";
        for piece in 1..=data.len() {
            let rows = read(&CopyOptions::default(), data, piece).unwrap();
            assert_eq!(
                rows,
                vec![
                    some(&["1", "a\tb\nc"]),
                    some(&["2", "NULL"]),
                    some(&["3", "AA\\"])
                ],
                "{piece}"
            );
        }
    }

    #[test]
    fn csv_is_read_in_pieces_of_any_size() {
        let options = CopyOptions {
            csv: true,
            ..CopyOptions::default()
        };
        let data = "1,\"a,\"\"b\"\"\nc\"\r\n2,\n3,\"\"\n4,x";
        for piece in 1..=data.len() {
            let rows = read(&options, data, piece).unwrap();
            assert_eq!(
                rows,
                vec![
                    some(&["1", "a,\"b\"\nc"]),
                    some(&["2", "NULL"]),
                    some(&["3", ""]),
                    some(&["4", "x"])
                ],
                "{piece}"
            );
        }
        let e = read(&options, "1,\"open\n", 3).unwrap_err();
        assert_eq!(e.sqlstate, "22P04");
    }

    #[test]
    fn what_is_written_reads_back() {
        let values = ["", "a\tb", "\\N", "x\"y", "l1\nl2\r", "\\.", "ü,;"];
        for csv in [false, true] {
            let options = CopyOptions {
                csv,
                ..CopyOptions::default()
            };
            let format = Format::new(&options).unwrap();
            for v in values {
                let mut out = Vec::new();
                format.write_row(&[Some(v), None], &[], &mut out);
                let rows = read(&options, std::str::from_utf8(&out).unwrap(), 2).unwrap();
                assert_eq!(rows, vec![vec![Some(v.to_owned()), None]], "{csv} {v:?}");
            }
        }
    }

    #[test]
    fn bad_bytes_are_refused() {
        let mut reader = Reader::new(Format::new(&CopyOptions::default()).unwrap());
        let e = reader.push(b"\xff\n", &mut Vec::new()).unwrap_err();
        assert_eq!(e.sqlstate, "22021");
    }
}
