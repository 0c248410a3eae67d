"""What can be said of an object by itself: pure checks that the compiler and the webhook share."""
