"""AdmissionReviews in; allowed or denied with the reason, out. Asks the compiler; answers from local checks when it is silent."""
