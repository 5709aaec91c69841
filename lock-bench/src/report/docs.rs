use std::{fs, path::Path};

use crate::Result;

/// Replaces the part of a page between `<!-- begin NAME -->` and `<!-- end NAME -->`.
pub(crate) fn update(page: &Path, name: &str, part: &str) -> Result<()> {
    let text = fs::read_to_string(page)
        .map_err(|error| format!("cannot read {}: {error}", page.display()))?;
    let text = replaced(&text, name, part).ok_or_else(|| {
        format!(
            "{} has no marks `<!-- begin {name} -->` and `<!-- end {name} -->`",
            page.display()
        )
    })?;
    Ok(fs::write(page, text)?)
}

fn replaced(text: &str, name: &str, part: &str) -> Option<String> {
    let begin = format!("<!-- begin {name} -->");
    let end = format!("<!-- end {name} -->");
    let (head, rest) = text.split_once(&begin)?;
    let (_, tail) = rest.split_once(&end)?;
    Some(format!("{head}{begin}\n\n{}\n\n{end}{tail}", part.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_its_own_part_only() {
        let page = "# Page\n<!-- begin a -->\nold\n<!-- end a -->\n<!-- begin b -->\nkept\n<!-- end b -->\n";
        let once = replaced(page, "a", "new\n").unwrap();
        assert_eq!(
            once,
            "# Page\n<!-- begin a -->\n\nnew\n\n<!-- end a -->\n<!-- begin b -->\nkept\n<!-- end b -->\n"
        );
        assert_eq!(replaced(&once, "a", "new").unwrap(), once);
        assert_eq!(replaced(page, "c", "x"), None);
    }
}
