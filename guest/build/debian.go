package main

func (b builder) debian(work string) error { return nil }
