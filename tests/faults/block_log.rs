//! Power cuts at every flush of the device: what had not been flushed is gone.
