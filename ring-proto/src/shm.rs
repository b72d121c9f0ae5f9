//! Access to memory that a peer can change at any moment.
