use clap::Args;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use lock_conformance::{Case, Claim, Suite};

/// Options of `list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Add the defects on which each case is proven
    #[arg(long)]
    defects: bool,
}

impl List {
    pub(crate) fn run(&self) {
        let mut table = Table::new();
        let mut header = vec!["case", "level", "badge", "needs"];
        if self.defects {
            header.push("finds");
        }
        table.load_style(UTF8_FULL_CONDENSED).set_header(header);
        for case in Suite::cases() {
            table.add_row(self.row(&case));
        }
        println!("{table}");
    }

    fn row(&self, case: &Case) -> Vec<String> {
        let badge = case.badge().map(|badge| Claim::from(badge).to_string());
        let needs: Vec<_> = case.needs.iter().map(|need| format!("{need:?}")).collect();
        let mut row = vec![
            case.full_name(),
            Claim::from(case.level()).to_string(),
            badge.unwrap_or_default(),
            needs.join(", "),
        ];
        if self.defects {
            let found = case.known_defects();
            row.push(
                found
                    .map(|defect| defect.text)
                    .collect::<Vec<_>>()
                    .join("\n"),
            );
        }
        row
    }
}
