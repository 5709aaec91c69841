pub(crate) use crate::defects::networked::{Defect, TABLE};

impl Defect {
    pub(crate) const VARIABLE: &str = "TCP_BACKEND_DEFECT";

    pub(crate) fn from_environment() -> Self {
        let name = std::env::var(Self::VARIABLE).unwrap_or_default();
        let defects = TABLE.iter().map(|(defect, ..)| *defect);
        defects
            .into_iter()
            .find(|defect| format!("{defect:?}") == name)
            .unwrap_or(Self::None)
    }
}
