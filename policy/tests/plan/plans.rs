//! Plans for cases worth a name.
