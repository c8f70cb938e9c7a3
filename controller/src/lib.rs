//! controller: to be written.
