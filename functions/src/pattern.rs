//! The words of date and time patterns, in which `to_char` writes and `to_date`
//! reads.

use crate::error::FunctionError;

/// Pattern words, longest first among those that share a beginning. `None`:
/// known to PostgreSQL, not to us.
const WORDS: &[(&str, Option<Word>)] = &[
    ("HH24", Some(Word::Hour24)),
    ("HH12", Some(Word::Hour12)),
    ("HH", Some(Word::Hour12)),
    ("MI", Some(Word::Minute)),
    ("SSSSS", None),
    ("SSSS", None),
    ("SS", Some(Word::Second)),
    ("MS", Some(Word::Milli)),
    ("US", Some(Word::Micro)),
    ("FF", None),
    ("Y,YYY", None),
    ("YYYY", Some(Word::Year)),
    ("YYY", None),
    ("YY", Some(Word::Year2)),
    ("Y", None),
    ("IYYY", Some(Word::IsoYear)),
    ("IYY", None),
    ("IY", None),
    ("IW", Some(Word::IsoWeek)),
    ("IDDD", None),
    ("ID", Some(Word::IsoDay)),
    ("I", None),
    ("MONTH", Some(Word::Month)),
    ("MON", Some(Word::Mon)),
    ("MM", Some(Word::MonthNumber)),
    ("DAY", Some(Word::Day)),
    ("DY", Some(Word::Dy)),
    ("DDD", Some(Word::DayOfYear)),
    ("DD", Some(Word::DayNumber)),
    ("D", Some(Word::WeekDay)),
    ("WW", Some(Word::Week)),
    ("W", Some(Word::WeekOfMonth)),
    ("Q", Some(Word::Quarter)),
    ("CC", None),
    ("J", None),
    ("RM", None),
    ("TZH", None),
    ("TZM", None),
    ("TZ", Some(Word::Zone)),
    ("OF", None),
    ("A.M.", None),
    ("P.M.", None),
    ("AM", Some(Word::Meridiem)),
    ("PM", Some(Word::Meridiem)),
    ("BC", None),
    ("AD", None),
    ("TM", None),
    ("FX", None),
];

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Word {
    Hour24,
    Hour12,
    Minute,
    Second,
    Milli,
    Micro,
    Year,
    Year2,
    IsoYear,
    IsoWeek,
    IsoDay,
    Month,
    Mon,
    MonthNumber,
    Day,
    Dy,
    DayOfYear,
    DayNumber,
    WeekDay,
    Week,
    WeekOfMonth,
    Quarter,
    Zone,
    Meridiem,
}

pub(crate) enum Piece {
    Word {
        word: Word,
        text: String,
        fill: bool,
    },
    Literal(char),
}

pub(crate) fn pieces(pattern: &str) -> Result<Vec<Piece>, FunctionError> {
    let mut out = Vec::new();
    let mut rest = pattern;
    let mut fill = true;
    'next: while let Some(first) = rest.chars().next() {
        if first == '"' {
            let body = &rest[1..];
            let end = body.find('"').unwrap_or(body.len());
            out.extend(body[..end].chars().map(Piece::Literal));
            rest = body.get(end + 1..).unwrap_or("");
            continue;
        }
        if rest.len() >= 2 && rest.is_char_boundary(2) && rest[..2].eq_ignore_ascii_case("FM") {
            fill = false;
            rest = &rest[2..];
            continue;
        }
        for (name, word) in WORDS {
            let matches = rest.len() >= name.len()
                && rest.is_char_boundary(name.len())
                && rest[..name.len()].eq_ignore_ascii_case(name);
            if !matches {
                continue;
            }
            let Some(word) = word else {
                return Err(FunctionError::unsupported(format!(
                    "the pattern \"{name}\" of to_char and to_date"
                )));
            };
            let text = rest[..name.len()].to_owned();
            rest = &rest[name.len()..];
            if rest.len() >= 2 && rest.is_char_boundary(2) && rest[..2].eq_ignore_ascii_case("TH") {
                return Err(FunctionError::unsupported("the pattern suffix \"TH\""));
            }
            out.push(Piece::Word {
                word: *word,
                text,
                fill,
            });
            fill = true;
            continue 'next;
        }
        out.push(Piece::Literal(first));
        rest = &rest[first.len_utf8()..];
    }
    Ok(out)
}
