//! Where a statement ends: a small scanner that knows PostgreSQL's quotes and
//! comments, so that a `;` inside a string, a dollar-quoted body or a comment
//! does not end the statement. Pure, fed line by line.

/// Collects text and hands out whole statements.
#[derive(Debug, Default)]
pub struct Splitter {
    text: String,
}

/// What a scan stopped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Nothing is open: only white space and comments are pending.
    Nothing,
    /// A statement has begun.
    Statement,
    /// Inside `'...'`, `"..."`, `$tag$...` or `/* ... */`.
    Quoted,
}

impl Splitter {
    /// Adds text, and returns the statements that it completes, without their
    /// closing semicolon.
    pub fn push(&mut self, text: &str) -> Vec<String> {
        self.text.push_str(text);
        let mut statements = Vec::new();
        while let Scan::End(end) = scan(&self.text) {
            let rest = self.text.split_off(end + 1);
            self.text.pop();
            let statement = std::mem::replace(&mut self.text, rest);
            if has_content(&statement) {
                statements.push(statement.trim().to_owned());
            }
        }
        statements
    }

    /// What is pending.
    pub fn open(&self) -> Open {
        match scan(&self.text) {
            Scan::End(_) | Scan::Open(Open::Nothing) => Open::Nothing,
            Scan::Open(open) => open,
        }
    }

    /// Takes what is pending, finished or not; `None` when it is only space
    /// and comments.
    pub fn take(&mut self) -> Option<String> {
        let text = std::mem::take(&mut self.text);
        has_content(&text).then(|| text.trim().to_owned())
    }
}

/// The statements of a whole script; the last needs no semicolon.
pub fn statements(script: &str) -> Vec<String> {
    let mut splitter = Splitter::default();
    let mut all = splitter.push(script);
    all.extend(splitter.take());
    all
}

enum Scan {
    /// Byte position of the `;`.
    End(usize),
    Open(Open),
}

fn has_content(text: &str) -> bool {
    matches!(
        scan(text),
        Scan::Open(Open::Statement) | Scan::Open(Open::Quoted)
    )
}

fn scan(text: &str) -> Scan {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut content = false;
    while at < bytes.len() {
        let rest = &text.as_bytes()[at..];
        let skipped = match rest[0] {
            b';' => return Scan::End(at),
            b'-' if rest.starts_with(b"--") => {
                at += rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
                continue;
            }
            b'/' if rest.starts_with(b"/*") => match comment(rest) {
                Some(length) => {
                    at += length;
                    continue;
                }
                None => None,
            },
            b'\'' => {
                let escapes = at > 0
                    && matches!(bytes[at - 1], b'e' | b'E')
                    && (at < 2 || !is_word(bytes[at - 2]));
                quoted(rest, b'\'', escapes)
            }
            b'"' => quoted(rest, b'"', false),
            b'$' if at == 0 || !is_word(bytes[at - 1]) => dollar(rest),
            space if space.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            _ => Some(1),
        };
        content = true;
        match skipped {
            Some(length) => at += length,
            None => return Scan::Open(Open::Quoted),
        }
    }
    Scan::Open(if content {
        Open::Statement
    } else {
        Open::Nothing
    })
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Length of a comment; they nest.
fn comment(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += 1;
        }
    }
    None
}

/// Length of a quoted string with its quotes; a doubled quote is one inside.
fn quoted(bytes: &[u8], quote: u8, escapes: bool) -> Option<usize> {
    let mut at = 1;
    while at < bytes.len() {
        if escapes && bytes[at] == b'\\' {
            at += 2;
        } else if bytes[at] == quote {
            if bytes.get(at + 1) == Some(&quote) {
                at += 2;
            } else {
                return Some(at + 1);
            }
        } else {
            at += 1;
        }
    }
    None
}

/// Length of `$tag$ ... $tag$`; 1 when this dollar opens none (`$1`).
fn dollar(bytes: &[u8]) -> Option<usize> {
    let Some(length) = bytes[1..].iter().position(|&b| b == b'$') else {
        return Some(1);
    };
    let tag = &bytes[..length + 2];
    let name = &tag[1..=length];
    if name.iter().any(|&b| !is_word(b)) || name.first().is_some_and(u8::is_ascii_digit) {
        return Some(1);
    }
    bytes[tag.len()..]
        .windows(tag.len())
        .position(|window| window == tag)
        .map(|at| at + 2 * tag.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_inside_quotes_and_comments_do_not_end_a_statement() {
        assert_eq!(
            statements(
                "select ';' -- one; two\n, \";\"; /* ; /* ; */ ; */ select $a$;$b$;$a$, E'\\';' ;;"
            ),
            [
                "select ';' -- one; two\n, \";\"",
                "/* ; /* ; */ ; */ select $a$;$b$;$a$, E'\\';'"
            ]
        );
        assert_eq!(statements("select $1; select 2"), ["select $1", "select 2"]);
        assert!(statements(" -- nothing\n ; /* here */").is_empty());
    }

    #[test]
    fn lines_add_up_to_statements() {
        let mut splitter = Splitter::default();
        assert!(splitter.push("select 'a\n").is_empty());
        assert_eq!(splitter.open(), Open::Quoted);
        assert!(splitter.push("b'\n").is_empty());
        assert_eq!(splitter.open(), Open::Statement);
        assert_eq!(splitter.push("; select 2\n"), ["select 'a\nb'"]);
        assert_eq!(splitter.take().as_deref(), Some("select 2"));
        assert_eq!(splitter.open(), Open::Nothing);
    }
}
