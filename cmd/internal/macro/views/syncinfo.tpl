# {host}: progress of the full sync
%unless{%or{%sync-reached{}}{%is-primary{}}{%not{%is-attach{}}}}{\
	\     syncing: %progress{20}{%sync-pos{}}{%sync-pos{}}{%sync-size{}}\
	\  %sprintf{%.2f}{%sync-percent{}}\%\
	\  %human-pair{%sync-pos{}}{%sync-size{}}\
	\  rate: %human-rate{%sync-rate{}}/sec\
	\  remaining: %human-seconds{%sync-remain{}} hrs\n\
	%sync-line{}\
}
